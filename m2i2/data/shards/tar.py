"""Tar bytes of our own making: the same content gives the same bytes, and every member's place is known."""

import hashlib
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2i2.data.shards.split import ITEM

_BLOCK = 512


def header(name: str, size: int) -> bytes:
    """A ustar header without time, owner or machine."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


class TarWriter:
    """Writes samples one after another and remembers where their members lie."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self._file = path, path.open("xb")
        self._hash = hashlib.sha256()
        self._number = number
        self.size, self.samples = 0, 0
        self.rows: list[tuple[int, ...]] = []

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def _member(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its content."""
        self._write(header(name, len(data)))
        offset = self.size
        self._write(data + bytes(-len(data) % _BLOCK))
        return offset

    def add(self, key: str, ending: str, image: bytes, text: bytes, items: int) -> None:
        """A sample of an image and its text, counting for ``items`` items."""
        image_offset = self._member(f"{key}.{ending}", image)
        text_offset = self._member(f"{key}.json", text)
        self.samples += 1
        checksums = zlib.crc32(image), zlib.crc32(text)
        for part in range(items):
            self.rows.append((self._number, part, image_offset, text_offset, len(image), len(text), *checksums))

    def close(self) -> tuple[str, NDArray[np.void]]:
        """End the archive; returns its sha256 and its rows of the table of items."""
        self._write(bytes(2 * _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest(), np.array(self.rows, dtype=ITEM)


def members(path: Path) -> dict[int, tuple[str, int]]:
    """{offset of content: (name, size)} of a tar of ours; tarfile.TarError where it is damaged or holds anything else.

    Header for header: links, devices, folders and extended headers are refused, and nothing may follow the end.
    """
    found: dict[int, tuple[str, int]] = {}
    with path.open("rb") as f:
        length, place = os.fstat(f.fileno()).st_size, 0
        while any(block := f.read(_BLOCK)):
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            if not member.isreg():
                raise tarfile.TarError(f"{member.name!r:.80} is not a regular file")
            if not 0 <= member.size <= length - place - _BLOCK:
                raise tarfile.TarError(f"{member.name!r:.80} claims {member.size} bytes, more than the archive has")
            found[place + _BLOCK] = (member.name, member.size)
            place += _BLOCK + -(-member.size // _BLOCK) * _BLOCK
            f.seek(place)
        if length - place != 2 * _BLOCK or any(f.read()):
            raise tarfile.TarError("it does not end as a tar does")
    return found
