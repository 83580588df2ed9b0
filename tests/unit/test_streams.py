"""The streams in DICOM files: their own sizes, scans, tiles and runs are bounded before a decoder sees them, in the app too."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from m2i2.data.images.codestream import MAX_RUNS
from m2i2.data.images.dicom import decode_dicom
from m2i2.errors import M2I2Error
from tests.fuzz.harness import refuses
from tests.unit.dicom_files import dicom, frame, stream
from tests.unit.test_security import many_scans

GREY = Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 10), dtype=np.uint8))
HUGE = struct.pack(">HH", 65_500, 65_500)


def saved(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    GREY.save(out, kind, **options)
    return out.getvalue()


def patched(data: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    """``data`` with bytes behind the first ``marker`` replaced."""
    place = data.index(marker) + offset
    return data[:place] + new + data[place + len(new) :]


JPEG, J2K = saved("JPEG"), saved("JPEG2000", no_jp2=True, irreversible=False)
JLS = frame("MR_small_jpeg_ls_lossless")
FRAME, SCAN = b"\xff\xc0", b"\xff\xda"
SECOND = JPEG[JPEG.index(FRAME) : JPEG.index(FRAME) + 2 + 11]
SIZE = struct.pack(">4I", 65_500, 65_500, 0, 0)
COD = J2K[J2K.index(b"\xff\x52") :]
TINY_PRECINCTS = b"\xff\x52\x00\x0d\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00"


def rle(*runs: tuple[bytes, int]) -> bytes:
    return struct.pack("<16I", 1, 64, *[0] * 14) + b"".join(run * count for run, count in runs)


def swapped(coding: bytes, width: int = 10) -> bytes:
    """J2K with another COD, and another width in its SIZ and its tile's."""
    length = struct.unpack(">H", COD[2:4])[0] + 2
    data = J2K.replace(COD[:length], coding, 1)
    place = data.index(b"\xff\x51")
    wide = struct.pack(">8I", width, width, 0, 0, width, width, 0, 0)
    return data[: place + 6] + wide + data[place + 6 + 32 :]


ATTACKS: dict[str, tuple[bytes, uid.UID, int, str]] = {
    "jpeg": (patched(JPEG, FRAME, 5, HUGE), uid.JPEGBaseline8Bit, 10, "is 65500 x 65500 pixels, where the header says 10 x 10"),
    "jpeg twice": (JPEG.replace(SECOND, SECOND * 2), uid.JPEGBaseline8Bit, 10, "size a second time"),
    "jpeg components": (patched(JPEG, FRAME, 9, b"\xff"), uid.JPEGBaseline8Bit, 10, "255 components"),
    "scans": (many_scans(), uid.JPEGBaseline8Bit, 0, "more than 100 scans of 384 pixels"),
    "hidden scans": (JPEG.replace(SCAN, b"\xff\x02\x00\x04ab" + SCAN), uid.JPEGBaseline8Bit, 10, "unknown marker ff 02"),
    "lossless": (patched(JPEG, FRAME, 1, b"\xc3" + b"\x00\x0b\x08" + HUGE), uid.JPEGLosslessSV1, 10, "is 65500 x 65500 pixels"),
    "jpeg-ls": (patched(JLS, b"\xff\xf7", 5, HUGE), uid.JPEGLSLossless, 64, "is 65500 x 65500 pixels"),
    "jpeg-ls extension": (JLS[:2] + b"\xff\xf8\x00\x09\x04" + bytes(6) + JLS[2:], uid.JPEGLSLossless, 64, "size a second time"),
    "jpeg 2000": (patched(J2K, b"\xff\x51", 6, SIZE), uid.JPEG2000Lossless, 10, "is 65500 x 65500 pixels"),
    "offset": (patched(J2K, b"\xff\x51", 14, struct.pack(">2I", 4, 0)), uid.JPEG2000Lossless, 10, "is 6 x 10 pixels"),
    "tiles": (patched(J2K, b"\xff\x51", 22, struct.pack(">2I", 0, 1)), uid.JPEG2000Lossless, 10, "covers nothing"),
    "precincts": (swapped(TINY_PRECINCTS, 4000), uid.JPEG2000Lossless, 4000, "may have 16000000 precincts"),
    "layers": (swapped(TINY_PRECINCTS.replace(b"\0\0\1", b"\0\xff\xff", 1), 400), uid.JPEG2000Lossless, 400, "10485600000 packets"),
    "no stream": (b"\xff\xd8\xff", uid.JPEG2000Lossless, 10, "does not start as JPEG 2000 does|ends early"),
    "other stream": (J2K, uid.JPEGBaseline8Bit, 10, "does not start as a JPEG does"),
    "rle": (rle((b"\x81\0", 1 << 20)), uid.RLELossless, 10, "bytes for 100 pixels"),
    "rle runs": (rle((b"\x81\0", 600)), uid.RLELossless, 10, f"more than 1224 bytes, or has more than {MAX_RUNS} runs"),
    "rle segments": (struct.pack("<16I", 15, *[64] * 15), uid.RLELossless, 10, "15 segments, where the header asks for 1"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_streams_that_ask_for_more_than_their_header(attack: str) -> None:
    content, syntax, side, message = ATTACKS[attack]
    rows, columns = (side, side) if side else (16, 24)
    data = stream(content, syntax, rows, columns)
    with pytest.raises(M2I2Error, match=message):
        decode_dicom(data, "x")
    assert refuses(lambda data: decode_dicom(data, "x"), data), "within bounds of time and memory"


@pytest.mark.parametrize(
    ("content", "syntax"),
    [
        (JPEG, uid.JPEGBaseline8Bit),
        (saved("JPEG", progressive=True), uid.JPEGBaseline8Bit),
        (J2K, uid.JPEG2000Lossless),
        (saved("JPEG2000", no_jp2=True, tile_size=(4, 4), quality_layers=[8, 4, 1], num_resolutions=2), uid.JPEG2000),
        (saved("JPEG2000"), uid.JPEG2000),
        (rle((b"\x09abcdefghij", 10)), uid.RLELossless),
    ],
    ids=["jpeg", "progressive", "jpeg-2000", "tiles and layers", "jp2", "rle"],
)
def test_streams_that_say_what_their_header_says(content: bytes, syntax: uid.UID) -> None:
    assert decode_dicom(stream(content, syntax, 10, 10), "x").image.size == (10, 10)


ENDING = bytes.fromhex(  # found by fuzzing: a progressive JPEG with a damaged table
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d1a1c1c20242e27"
    "20222c231c1c2837292c30313434341f27393d38323c2e333432ffc2000b080010001001011100ffc4001500010100000000000000000000000000000300"
    "1510010100000000000000000000000000000014ffda00080101000105028d1a346fffc4001510010100000000000000000000cfffc4001610000300000000"
    "ff0000000000000000000001f0ffda0008010100013f10b22c8b22c8ffd9"
)


def test_a_frame_that_ends_its_decoder_ends_nothing_else() -> None:
    with pytest.raises(M2I2Error, match=r"its decoder ended at it|cannot be decoded"):  # GDCM 3.2 ends its process
        decode_dicom(stream(ENDING, uid.JPEGBaseline8Bit, 16, 16), "x")
    assert decode_dicom(stream(JPEG, uid.JPEGBaseline8Bit, 10, 10), "x").image.size == (10, 10)


def test_a_modality_of_no_known_kind_is_an_error_like_others() -> None:
    data = dicom(np.zeros((4, 4)))
    place = data.index(b"\x08\x00\x60\x00CS")
    with pytest.raises(M2I2Error, match="cannot be decoded"):
        decode_dicom(data[: place + 4] + b"ZZ" + data[place + 6 :], "x")


def elements(count: int) -> bytes:
    """Elements of 8 bytes without a value, before the pixels."""
    data = dicom(np.zeros((4, 4)), syntax=uid.ImplicitVRLittleEndian)
    place = data.index(b"\x10\x00\x10\x00")
    many = b"".join(struct.pack("<HHI", 0x0009, number & 0xFFFF, 0) for number in range(count))
    return data[:place] + many + data[place:]


def wide_window() -> bytes:
    data = dicom(np.zeros((4, 4)), syntax=uid.ImplicitVRLittleEndian)
    place = data.index(b"\xe0\x7f\x10\x00")
    return data[:place] + struct.pack("<HHI", 0x0028, 0x1050, 2 << 20) + b"1\\" * (1 << 20) + data[place:]


@pytest.mark.parametrize("number", ["8.1", "4.95", "4.99"], ids=["deflated frames", "deflated and elsewhere", "unknown"])
def test_frames_of_other_kinds_reach_no_decoder(number: str) -> None:
    data = stream(zlib.compress(bytes(1 << 20)), uid.JPEGBaseline8Bit, 10, 10)
    other = f"1.2.840.10008.1.2.{number}".encode().ljust(22, b"\0")
    with pytest.raises(M2I2Error, match=r"cannot be decoded|none of JPEG, JPEG-LS, JPEG 2000 and RLE"):
        decode_dicom(data.replace(b"1.2.840.10008.1.2.4.50", other), "x")


def float_pixels() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(dicom(np.zeros((4, 4)))))
    del dataset.PixelData
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = 6000, 6000, 64
    dataset.DoubleFloatPixelData = bytes(64)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: elements(30_000), "more than 20000 elements"),
        (float_pixels, "6000 x 6000 pixels, more than the bound of 25000000"),
        (wide_window, r"its element \(0028,1050\) has 2097152 bytes"),
    ],
    ids=["elements", "floats", "window"],
)
def test_headers_that_become_far_more_than_their_bytes(
    make: Callable[[], bytes], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2i2.data.images.elements.MAX_ELEMENTS", 20_000)  # of 500,000, which take seconds to read
    data = make()
    with pytest.raises(M2I2Error, match=message):
        decode_dicom(data, "x")


def test_the_app_refuses_them_too(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    from m2i2.app.page import Desk, Limits
    from m2i2.app.study import Study

    uploads = tmp_path / "uploads"
    uploads.mkdir()
    desk: Any = Desk(None, Limits(), uploads)  # type: ignore[arg-type]  # opening asks no model

    def add(path: Path) -> str:
        shown = desk.add(Study(), gradio.EventData(None, {"files": [str(path)]}))
        assert not shown.study.cases
        return str(shown.hint)

    content, syntax, side, message = ATTACKS["jpeg"]
    (uploads / "study").write_bytes(stream(content, syntax, side, side))
    assert re.search(message, add(uploads / "study"))
    name = "<img src=x onerror=alert(1)>${alert(1)}{{alert}}.png"
    (uploads / name).write_bytes(b"no picture")
    hint = add(uploads / name)  # Gradio shows it as HTML
    assert "&lt;img src=x onerror=alert(1)&gt;${alert(1)}{{alert}}.png" in hint and "<img" not in hint
    (tmp_path / "secret.png").write_bytes(b"secret")
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", uploads / ".." / "secret.png", uploads / "link.png"):
        assert f"{path.name} is not an upload of this page" in add(path)
