"""What the compressed frame of a DICOM file asks of its decoder, checked on its bytes before a decoder sees them.

The header says Rows and Columns, the stream inside says its own size, and decoders allocate what the stream says. So both
must agree, and what else makes a decoder work (scans, tiles, precincts, code-blocks, layers, runs) is bounded.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from m2i2.data.images.bounds import MAX_SCANNED, MAX_SCANS
from m2i2.errors import M2I2Error

MAX_COMPONENTS = 4
MAX_TILES = 4096
MAX_PARTS = 100_000
"""Of tiles."""
MAX_PRECINCTS = 200_000
MAX_BLOCKS = 500_000
MAX_PACKETS = 10_000_000
"""Of JPEG 2000, whose decoder keeps about 6 kB for a tile, 1 kB for a precinct and 0.5 kB for a code-block."""
MAX_RUNS = 20_000_000
"""Runs of RLE, which are decoded one by one in Python."""
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""The next marker behind whatever else: entropy-coded bytes hold ff 00 and ff d0 to d7 only."""
_MARKER_LS = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])")
"""The same of JPEG-LS, whose entropy-coded bytes may hold ff 00 to ff 7f (ITU-T T.87, A.1)."""
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB, 0xF7)
"""Start of frame: baseline, extended, progressive, lossless, the same with arithmetic coding, JPEG-LS."""
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE)
_START, _END, _SCAN, _TEM, _EXTENSION = 0xD8, 0xD9, 0xDA, 0x01, 0xF8
_SEGMENTS = (*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xF7, _EXTENSION, 0xFE)
"""Markers with a length. Decoders disagree on how others go on."""
_SOC, _SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_HEADERS = (0xFF50, *range(0xFF51, 0xFF54), 0xFF55, 0xFF57, 0xFF58, 0xFF59, *range(0xFF5C, 0xFF62), 0xFF63, 0xFF64, _SOT)
"""Markers with a length in JPEG 2000's headers (ITU-T T.800, table A.2; T.814); a decoder searches others for more markers."""


class _Refused(ValueError):
    """Why a stream is refused."""


def check_stream(kind: str, stream: bytes, rows: int, columns: int, planes: int, name: str) -> None:
    """M2I2Error where a compressed frame asks for more than its header's ``rows`` x ``columns`` pixels may.

    ``kind``: jpeg, jpeg-ls, jpeg-2000 or rle; ``planes``: of RLE, its samples times its bytes per sample.
    """
    try:
        if kind == "rle":
            _check_rle(stream, rows * columns, planes)
        elif kind == "jpeg-2000":
            _check_jpeg_2000(stream, rows, columns)
        else:
            _check_jpeg(stream, rows, columns, _MARKER_LS if kind == "jpeg-ls" else _MARKER)
    except _Refused as e:
        raise M2I2Error(f"The DICOM file {name} was refused: its {kind.upper()} stream {e}. Export it again uncompressed.") from e
    except (struct.error, IndexError) as e:
        raise M2I2Error(f"The DICOM file {name} was refused: its {kind.upper()} stream ends early. Copy it again.") from e


def _require_size(width: int, height: int, components: int, rows: int, columns: int) -> None:
    if (width, height) != (columns, rows):
        raise _Refused(f"is {width} x {height} pixels, where the header says {columns} x {rows}")
    if not 1 <= components <= MAX_COMPONENTS:
        raise _Refused(f"has {components} components, more than {MAX_COMPONENTS}")


def _check_jpeg(stream: bytes, rows: int, columns: int, marker: re.Pattern[bytes]) -> None:
    """ITU-T T.81, B.1 and B.2; T.87, C.2."""
    if not stream.startswith(b"\xff\xd8"):
        raise _Refused("does not start as a JPEG does")
    place, frames, scans = 2, 0, 0
    while (found := marker.search(stream, place)) is not None:
        code, place = found[1][0], found.end()
        if code == _END:
            break
        if code == _START or code in _HIERARCHICAL:
            raise _Refused("holds several images")
        if code == _TEM:
            continue
        if code not in _SEGMENTS:
            raise _Refused(f"holds the unknown marker ff {code:02x}")
        length = struct.unpack_from(">H", stream, place)[0]
        if code in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", stream, place + 3)
            _require_size(width, height, components, rows, columns)
            if components not in (1, 3):  # GDCM ends the whole process at others
                raise _Refused(f"has {components} components, not 1 or 3")
            frames += 1
        elif code == _EXTENSION and stream[place + 2] == 4:
            raise _Refused("gives its size a second time")
        elif code == _SCAN:
            scans += 1
            if scans > MAX_SCANS or scans * rows * columns > MAX_SCANNED:
                raise _Refused(f"has more than {scans - 1} scans of {rows * columns} pixels")
        place += max(2, length)
    if frames != 1:
        raise _Refused("has no size" if not frames else "gives its size a second time")


@dataclass(frozen=True)
class _Grid:
    """SIZ, the sizes of a JPEG 2000 stream (ITU-T T.800, A.5.1)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiles: int
    components: int


def _check_jpeg_2000(stream: bytes, rows: int, columns: int) -> None:
    place = _start_of_codestream(stream)
    if struct.unpack_from(">HH", stream, place) != (_SOC, _SIZ):
        raise _Refused("does not start as JPEG 2000 does")
    grid = _grid(stream, place + 6, rows, columns)
    for code, start in _headers(stream, place + 2):
        if code == _SIZ and start != place + 6:
            raise _Refused("gives its size a second time")
        if code == _COD:
            layers = struct.unpack_from(">H", stream, start + 2)[0]
            _check_coding(stream, start + 5, bool(stream[start] & 1), grid, layers)
        elif code == _COC:
            start += 1 if grid.components < 257 else 2
            _check_coding(stream, start + 1, bool(stream[start] & 1), grid, 1)


def _start_of_codestream(stream: bytes) -> int:
    """Where the codestream lies: at 0, or in a box of a JP2 file (ITU-T T.800, I.4)."""
    place = 0
    while stream[place + 4 : place + 8] in (b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"uuid", b"xml ", b"url ", b"uinf", b"jp2i"):
        size, kind = struct.unpack_from(">I", stream, place)[0], stream[place + 4 : place + 8]
        if kind == b"jp2c":
            return place + (16 if size == 1 else 8)
        if kind == b"jp2h" and re.search(b"pclr|cmap", stream[place : place + size]):
            raise _Refused("has a palette of its own")
        if size < 8:
            raise _Refused("is not a JP2 file of known sizes")
        place += size
    return place


def _grid(stream: bytes, place: int, rows: int, columns: int) -> _Grid:
    right, lower, left, upper, tile_w, tile_h, tile_left, tile_upper, components = struct.unpack_from(">8IH", stream, place + 2)
    if not tile_w or not tile_h or tile_left > left or tile_upper > upper or left >= right or upper >= lower:
        raise _Refused("has a grid that covers nothing")
    _require_size(right - left, lower - upper, components, rows, columns)
    for component in range(components):
        depth, across, down = stream[place + 36 + 3 * component : place + 39 + 3 * component]
        if (depth & 127) >= 32 or across != 1 or down != 1:
            raise _Refused("has components of other sizes or of more than 32 bits")
    tiles = -(-(right - tile_left) // tile_w) * -(-(lower - tile_upper) // tile_h)
    if tiles > MAX_TILES:
        raise _Refused(f"has {tiles} tiles, more than {MAX_TILES}")
    return _Grid(right - left, lower - upper, min(tile_w, right - left), min(tile_h, lower - upper), tiles, components)


def _headers(stream: bytes, place: int) -> Iterator[tuple[int, int]]:
    """(marker, place of its content) of the main header and of every tile part's (ITU-T T.800, A.3)."""
    part = size = parts = 0
    while place + 2 <= len(stream):
        code = struct.unpack_from(">H", stream, place)[0]
        if code == _EOC or (code == _SOD and size == 0):  # a last part without a size goes on to the end
            return
        if code == _SOD:
            if size < 14:
                raise _Refused("has a tile part of an impossible size")
            place, size = part + size, 0
            continue
        if code not in _HEADERS:
            raise _Refused(f"holds the unknown marker {code:04x}")
        length = struct.unpack_from(">H", stream, place + 2)[0]
        if code == _SOT:
            part, size, parts = place, struct.unpack_from(">I", stream, place + 6)[0], parts + 1
            if parts > MAX_PARTS:
                raise _Refused(f"has more than {MAX_PARTS} tile parts")
        yield code, place + 4
        place += 2 + max(2, length)


def _check_coding(stream: bytes, place: int, sized: bool, grid: _Grid, layers: int) -> None:
    """The styles of COD and COC (ITU-T T.800, A.6.1): what they cut a tile into. ``place``: the number of decompositions."""
    levels, block_w, block_h = stream[place], (stream[place + 1] & 15) + 2, (stream[place + 2] & 15) + 2
    if levels > 32 or block_w + block_h > 12:
        raise _Refused("has impossible code-blocks")
    precincts = blocks = 0
    for level in range(levels + 1):  # the smallest resolution first
        sizes = stream[place + 5 + level] if sized else 0xFF
        width, height = (-(-side >> (levels - level)) for side in (grid.tile_width, grid.tile_height))
        wide, high = sizes & 15, sizes >> 4
        precincts += _pieces(width, wide) * _pieces(height, high)
        bands, half = (3, 1) if level else (1, 0)  # above the smallest, three bands of half the size
        across = _pieces(-(-width >> half), max(0, min(block_w, wide - half)))
        blocks += bands * across * _pieces(-(-height >> half), max(0, min(block_h, high - half)))
    count = grid.tiles * grid.components
    for what, found, most in (
        ("precincts", precincts * count, MAX_PRECINCTS),
        ("code-blocks", blocks * count, MAX_BLOCKS),
        ("packets", precincts * count * layers, MAX_PACKETS),
    ):
        if found > most:
            raise _Refused(f"may have {found} {what}, more than {most}")


def _pieces(length: int, exponent: int) -> int:
    """Most pieces of 2**exponent that a length can lie in, wherever it starts."""
    return (length >> exponent) + (2 if exponent else 0)


def _check_rle(stream: bytes, pixels: int, planes: int) -> None:
    """DICOM PS3.5, annex G: the segments of a frame, one a plane, unpack to its pixels and no further."""
    segments, *offsets = struct.unpack_from("<16I", stream)
    if segments != planes or segments > 15:
        raise _Refused(f"has {segments} segments, where the header asks for {planes}")
    ends = [*offsets[1:segments], len(stream)]
    runs = 0
    for start, end in zip(offsets, ends, strict=False):
        runs += _runs(stream[start:end], pixels, MAX_RUNS - runs)


def _runs(segment: bytes, pixels: int, most: int) -> int:
    """The runs of a segment; refused where they are more than ``most``, or unpack to far more than ``pixels``."""
    place = unpacked = runs = 0
    bound, end = 2 * pixels + 1024, len(segment)
    if end > bound:
        raise _Refused(f"has a segment of {end} bytes for {pixels} pixels")
    while place < end:
        head = segment[place]
        if head < 128:
            place += head + 2
            unpacked += head + 1
        elif head > 128:
            place += 2
            unpacked += 257 - head
        else:
            place += 1
        runs += 1
        if unpacked > bound or runs > most:
            raise _Refused(f"unpacks to more than {bound} bytes, or has more than {MAX_RUNS} runs, for {pixels} pixels")
    return runs
