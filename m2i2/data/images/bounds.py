"""What an encoded image may ask of its decoder, checked on its bytes before Pillow sees them.

The number of pixels alone does not bound the work: a directory of TIFF or EXIF tags whose entries all point at the same
bytes grows with the square of its size, and a progressive JPEG may paint the same pixels any number of times.
"""

import re
import struct
from typing import NamedTuple

from m2i2.errors import M2I2Error

MAX_SCANS = 100
"""Passes over the pixels of a progressive JPEG; encoders write about ten."""
MAX_SCANNED = 1_000_000_000
"""Pixels times scans of a JPEG; a decoder visits some hundred million a second."""
MAX_EXIF = 1 << 17
"""Bytes of EXIF in a JPEG; one segment, which is what cameras write, holds 65,533."""
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_MARKS = re.compile(rb"\xff[\xda\xe1]")
_EXIF = re.compile(rb"\xff\xe1(..)Exif\x00\x00", re.DOTALL)
_PROGRESSIVE, _START_OF_SCAN, _JFIF = 0xC2, 0xDA, 0xE0
_FRAMES, _TABLES = (0xC0, 0xC1, _PROGRESSIVE), (0xC4, 0xDB, 0xDD, 0xFE)
"""Markers of a JPEG's segments: frames of Huffman codes (baseline, extended, progressive); tables of codes and of quantisation, the
restart interval and comments; a scan; JFIF's own."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type (TIFF 6.0, section 2; BigTIFF adds 16 to 18)."""


def check_bounds(encoded: bytes, name: str) -> None:
    """M2I2Error for a JPEG or TIFF that asks for work or memory out of proportion."""
    if encoded.startswith(b"\xff\xd8"):
        marks = _MARKS.findall(encoded)  # few marks cannot be many scans, and no EXIF is without its own
        if len(marks) > MAX_SCANS and sum(1 for _ in _SCAN.finditer(encoded)) > MAX_SCANS:
            raise M2I2Error(f"The image {name} was refused: it has more than {MAX_SCANS} JPEG scans; save it again.")
        segments = _EXIF.finditer(encoded) if b"\xff\xe1" in marks else ()
        exif = sum(int.from_bytes(found[1], "big") for found in segments)
        if exif > MAX_EXIF:
            raise M2I2Error(f"The image {name} was refused: it has {exif} bytes of EXIF; save it again without metadata.")
    elif encoded.startswith((b"II", b"MM")):
        check_directory(encoded, name)


def check_scans(encoded: bytes, pixels: int, name: str) -> None:
    """M2I2Error for a JPEG whose scans together visit more than `MAX_SCANNED` pixels."""
    if pixels * MAX_SCANS > MAX_SCANNED and encoded.count(b"\xff\xda") * pixels > MAX_SCANNED:
        scans = sum(1 for _ in _SCAN.finditer(encoded))
        if scans * pixels > MAX_SCANNED:
            raise M2I2Error(f"The image {name} was refused: it has {scans} JPEG scans of {pixels} pixels; save it again.")


def check_directory(data: bytes, name: str) -> None:
    """M2I2Error where the values of the first directory of tags add up to more bytes than ``data``, a TIFF or EXIF, has."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    big = data[2] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    counter, entry, inline = ("Q", "HHQQ", 8) if big else ("H", "HHII", 4)
    head, step = struct.calcsize(order + counter), struct.calcsize(order + entry)
    if start + head > len(data):
        return
    count = struct.unpack_from(order + counter, data, start)[0]
    total = 0
    for place in range(start + head, min(start + head + count * step, len(data) - step + 1), step):
        _, kind, values, offset = struct.unpack_from(order + entry, data, place)
        size = values * _SIZES.get(kind, 0)
        if size > inline and offset + size <= len(data):
            total += size
    if total > max(len(data), MAX_EXIF):
        raise M2I2Error(
            f"The image {name} was refused: its tags claim {total} bytes, more than it has; save it again without metadata."
        )


class PlainJpeg(NamedTuple):
    """What the header of a JPEG of the plainest kind says."""

    width: int
    height: int
    channels: int
    """1 or 3."""
    one_scan: bool
    """Whether the first scan is all that a decoder reads: it holds every component, and the file is not progressive."""


def plain_jpeg(encoded: bytes) -> PlainJpeg | None:
    """The header of a JPEG of the plainest kind; None for any other file.

    It holds 8-bit samples, Huffman coded, and nothing else than JFIF's own segment, tables and comments: no EXIF or XMP that
    could ask for a turn, no profile, no mark of Adobe's. What any decoder makes of such a header is the same.
    """
    place, end = 2, len(encoded)
    found: tuple[int, int, int, bool] | None = None
    if not encoded.startswith(b"\xff\xd8"):
        return None
    while place + 4 <= end and encoded[place] == 0xFF:
        marker, length = encoded[place + 1], encoded[place + 2] << 8 | encoded[place + 3]
        content = encoded[place + 4 : place + 2 + length]
        if length < 2 or len(content) != length - 2:
            return None
        if marker == _START_OF_SCAN:
            return PlainJpeg(*found[:3], found[3] and content[:1] == bytes([found[2]])) if found else None
        if marker in _FRAMES:
            if found or length < 11 or content[0] != 8 or content[5] not in (1, 3) or length != 8 + 3 * content[5]:
                return None
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            if not width or not height:
                return None
            found = width, height, content[5], marker != _PROGRESSIVE
        elif marker not in _TABLES and not (marker == _JFIF and content.startswith(b"JFIF\0") and length >= 16):
            return None
        place += 2 + length
    return None
