"""Compressed DICOM frames, decoded in a process of their own: their codecs are written in C++, and damaged frames end them.

GDCM ended its process at one of about a hundred malformed frames, in some by a fault in memory. The process is started with the
first compressed frame, lasts, and is started again when it has ended.
"""

import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from m2i2.data.images.frame_process import ANSWER, REQUEST, SECONDS
from m2i2.errors import M2I2Error

if TYPE_CHECKING:
    from pydicom import Dataset

PATIENCE = 600
"""Seconds without an answer, on however busy a machine; the processor's time is bounded on the other side."""
_DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4")
_LOCK = threading.Lock()


class _Ended(Exception):
    """The process ended, or did not answer in time."""


class _Process:
    """The process that decodes."""

    def __init__(self) -> None:
        words = [sys.executable, "-I", str(Path(__file__).with_name("frame_process.py")), json.dumps(sys.path)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def decode(self, options: bytes, frame: bytes) -> tuple[str, tuple[int, ...], bytes]:
        """(dtype, shape, pixels); an empty shape where the frame cannot be decoded."""
        end = time.monotonic() + PATIENCE
        try:
            source = cast(IO[bytes], self._process.stdin)
            source.write(REQUEST.pack(len(options), len(frame)) + options)
            source.write(frame)
            source.flush()
            dtype, dimensions, *sides = ANSWER.unpack(self._read(ANSWER.size, end))
            shape, name = tuple(sides[:dimensions]), dtype.rstrip(b"\0").decode()
            if not shape:
                return "", (), b""
            if name not in _DTYPES or dimensions > 3:
                raise _Ended
            return name, shape, self._read(int(np.prod(shape, dtype=np.int64)) * np.dtype(name).itemsize, end)
        except (OSError, ValueError) as e:
            raise _Ended from e

    def _read(self, size: int, end: float) -> bytes:
        """The next bytes of the answer; a frame of 25 million pixels has at most 300 MB."""
        if size > 1 << 30:
            raise _Ended
        file = cast(IO[bytes], self._process.stdout).fileno()
        parts = bytearray()
        while len(parts) < size:
            if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
                raise _Ended
            part = os.read(file, min(size - len(parts), 1 << 20))
            if not part:
                raise _Ended
            parts += part
        return bytes(parts)

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()


@functools.lru_cache(maxsize=1)
def _process_of(owner: int) -> _Process:
    """The decoding process of this process, whose number is ``owner``: one that was forked starts its own."""
    return _Process()


def first_frame(dataset: "Dataset", name: str, *, raw: bool = False) -> NDArray[Any]:
    """The pixels of the first frame, as pydicom's ``pixel_array(dataset, index=0, raw=raw)`` gives them.

    M2I2Error for a compressed frame that its decoder cannot read, or at which it ends.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax or not syntax.is_encapsulated or syntax == RLELossless:
        return pixel_array(dataset, index=0, raw=raw)
    options = as_pixel_options(dataset)
    offsets = options.pop("extended_offsets", None)
    if offsets is not None and len(offsets[0]) != len(offsets[1]):
        offsets = None
    frame = get_frame(dataset.PixelData, 0, number_of_frames=options["number_of_frames"], extended_offsets=offsets)
    described = json.dumps({**options, "number_of_frames": 1, "syntax": str(syntax), "raw": raw}).encode()
    with _LOCK:
        process = _process_of(os.getpid())
        try:
            dtype, shape, content = process.decode(described, frame)
        except BaseException as e:  # Ctrl-C too: what it has not answered yet must not answer the next request
            process.end()
            _process_of.cache_clear()
            if not isinstance(e, _Ended):
                raise
            raise M2I2Error(
                f"The DICOM file {name} cannot be decoded: its decoder ended at it, or took more than {SECONDS} s of a processor. "
                f"It is damaged; export it again."
            ) from e
    if not shape:
        raise ValueError("no decoder could read the frame")
    return np.frombuffer(content, dtype=dtype).reshape(shape)
