"""The elements of a DICOM file, read within bounds: 8 bytes of a file can ask for an object of a kilobyte."""

import io
from typing import TYPE_CHECKING

from m2i2.data.images.codestream import check_stream
from m2i2.errors import M2I2Error, shown

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Elements that hold pixels."""
MAX_ELEMENTS = 500_000
"""Elements and items; pydicom takes up to 1.5 kB for one. A series of 5,000 frames in one file has about 400,000."""
MAX_ELEMENT = 1 << 20
"""Bytes of an element that describes the pixels; a look-up table has at most 131,072."""
MAX_GROUPS = 8 << 20
"""Bytes of the functional groups of all frames."""
MAX_FRAME = 25_000_000
"""Pixels; the largest detectors have 20 million, and each takes about 50 bytes on its way through codec, window and scaling."""
_HEADER = 16
"""Bytes: whatever pydicom reads at once of an element's header is shorter."""
_CHARACTER_SET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")
_PROFILE = 0x00282000
"""ICC profile, which stays as it is."""
_KINDS = {
    **dict.fromkeys((50, 51, 57, 70), "jpeg"),
    **dict.fromkeys((80, 81), "jpeg-ls"),
    **dict.fromkeys((90, 91, 92, 93, 201, 202, 203), "jpeg-2000"),
}
"""Compression by the last number of 1.2.840.10008.1.2.4."""


class _Elements(io.BytesIO):
    """A file that counts how many headers are read of it."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self.left = MAX_ELEMENTS
        self._tag = b""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and 0 <= size <= _HEADER:
            self.left -= size == 8
            if size == 8:
                self._tag = data[:4]
        elif len(data) > 1024 and self._tag in _CHARACTER_SET:
            self.left = -1
        if self.left < 0:
            raise ValueError("it has more elements than are read")
        return data


def read_dataset(encoded: bytes, name: str, *, force: bool = False) -> "Dataset":
    """The elements of a DICOM file, whose compressed frame a decoder may see.

    ``force``: without a preamble too. M2I2Error for more elements, larger ones, or a stream that asks for more than its
    header says; what pydicom raises for a damaged file passes through.
    """
    import pydicom

    file = _Elements(encoded)
    try:
        dataset = pydicom.dcmread(file, force=force)
    except Exception as e:
        if file.left < 0:
            raise M2I2Error(
                f"The DICOM file {name} was refused: its header has more than {MAX_ELEMENTS} elements, or a character set of "
                f"more than 1024 bytes. Export the image alone."
            ) from e
        raise
    _check_elements(dataset, name)
    if any(element in dataset for element in PIXELS):
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        if rows * columns > MAX_FRAME:
            raise M2I2Error(f"The DICOM file {name} has {columns} x {rows} pixels, more than the bound of {MAX_FRAME}.")
    if "PixelData" in dataset:
        _check_frame(dataset, name)
    return dataset


def _check_elements(dataset: "Dataset", name: str) -> None:
    """M2I2Error for an element too large to become an object: one of the pixels' description, or of the functional groups."""
    for tag in list(dataset.keys()):
        group = int(tag) >> 16
        most = MAX_ELEMENT if group in (0x0028, 0x7FE0) else MAX_GROUPS if group == 0x5200 else 0
        if not most or (group == 0x7FE0 and int(tag) not in (0x7FE00001, 0x7FE00002)) or int(tag) == _PROFILE:
            continue
        value = dataset.get_item(tag).value
        if isinstance(value, bytes) and len(value) > most:
            raise M2I2Error(f"The DICOM file {name} was refused: its element {tag} has {len(value)} bytes, more than {most}.")


def _check_frame(dataset: "Dataset", name: str) -> None:
    """M2I2Error where the first frame, as pydicom hands it to a decoder, asks for more than the header says."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax or not syntax.is_encapsulated:
        return
    kind = "rle" if syntax == RLELossless else None
    if syntax.startswith("1.2.840.10008.1.2.4.") and (number := syntax.rsplit(".", 1)[1]).isdigit():
        kind = _KINDS.get(int(number))
    if kind is None:
        raise M2I2Error(
            f"The DICOM file {name} was refused: it is compressed as {shown(str(syntax))}, which is none of JPEG, JPEG-LS, "
            f"JPEG 2000 and RLE. Export it again uncompressed."
        )
    if len(table := dataset.PixelData[:8]) == 8 and int.from_bytes(table[4:], "little") > 4 * MAX_ELEMENT:
        raise M2I2Error(f"The DICOM file {name} was refused: its table of frames is larger than {4 * MAX_ELEMENT} bytes.")
    options = as_pixel_options(dataset)
    offsets = options.get("extended_offsets")
    if offsets is not None and len(offsets[0]) != len(offsets[1]):
        offsets = None
    frame = get_frame(dataset.PixelData, 0, number_of_frames=options["number_of_frames"], extended_offsets=offsets)
    planes = int(dataset.get("SamplesPerPixel", 1)) * (int(dataset.BitsAllocated) // 8)
    check_stream(kind, frame, int(dataset.Rows), int(dataset.Columns), planes, name)
