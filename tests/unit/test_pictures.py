"""Pictures of every kind become the right pixels by every door, or are refused by their reason; none is silently uniform."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.images.decoding import decode
from m2i2.data.images.levels import value_range
from m2i2.data.images.picture import open_picture
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.errors import M2I2Error
from tests.unit.test_dicom import RAMP, dicom

CASES = Path(__file__).parents[1] / "cases"
COLUMNS = np.arange(64)[None].repeat(32, 0)
ROWS = np.arange(32)[:, None].repeat(64, 1)
GREY = COLUMNS / 63 * 255
COLOUR = np.stack([COLUMNS * 4, ROWS * 8, np.full_like(ROWS, 40)], axis=2)
WINDOW = ((np.linspace(0, 4095, 64).astype(int) - 1024 - 39.5) / 399 + 0.5).clip(0, 1)[None].repeat(32, 0) * 255
PALETTE = np.stack([COLUMNS * 4, 255 - COLUMNS * 4, 10 + COLUMNS * 2], axis=2)


def pixels(source: Any, **options: Any) -> np.ndarray:
    return np.asarray(open_picture(source, **options).image).astype(int)


def close(found: np.ndarray, expected: np.ndarray, most: float) -> None:
    expected = expected[..., None].repeat(3, 2) if expected.ndim == 2 else expected
    assert found.shape == expected.shape and abs(found - expected).max() <= most


@pytest.mark.parametrize(
    ("name", "expected", "most", "doubt"),
    [
        ("alpha0.png", COLOUR, 1, "wholly transparent"),
        ("enhanced-ct-window-in-shared-functional-group.dcm", WINDOW, 2, ""),
        ("jpeg-baseline-labelled-rgb-ycbcr-without-jfif-marker.dcm", COLOUR, 16, "labelled RGB"),
        ("palette-says-16-bits-entries-0-255.dcm", PALETTE, 1, ""),
        ("palette-says-8-bits-one-entry-a-word.dcm", PALETTE, 1, ""),
        ("rescaleslope-0-broken-exporter.dcm", GREY, 2, "rescale slope is 0"),
        ("rgb-16-allocated-stored-values-0-255.dcm", COLOUR, 1, ""),
        ("rgb16_12bit.png", GREY, 2, ""),
        ("signed8.tif", GREY, 2, ""),
        ("voi-lut-8-bit.dcm", 255 - GREY, 2, ""),
        ("voi-lut-says-16-bits-holds-12-bit-values.dcm", 255 - GREY, 2, ""),
        ("white_is_zero16.tif", 255 - GREY, 2, ""),
        ("window-outside-of-the-values-all-black.dcm", GREY, 2, "window lies beside"),
    ],
)
def test_what_became_black_white_negative_or_green_is_right(name: str, expected: np.ndarray, most: float, doubt: str) -> None:
    picture = open_picture(CASES / "silent" / name)
    close(np.asarray(picture.image).astype(int), expected, most)
    assert [doubt in told for told in picture.doubts] == [True] * bool(doubt)
    assert set(picture.doubts) <= set(picture.remarks)


def test_ink_on_transparent_is_black_on_white() -> None:
    rgba = np.asarray(Image.open(CASES / "silent" / "ink_on_transparent.png").convert("RGBA")).astype(int)
    picture = open_picture(CASES / "silent" / "ink_on_transparent.png")
    close(np.asarray(picture.image).astype(int), 255 - rgba[..., 3], 1)
    assert not picture.doubts and "white shows through" in picture.remarks[0]


@pytest.mark.parametrize("name", ["rgba.png", "grey16.png", "exif3.jpg"])
def test_every_door_gives_the_same_pixels(name: str) -> None:
    path = CASES / "pil16" / name
    expected = pixels(path)
    assert np.ptp(expected) > 150
    assert (pixels(path.read_bytes()) == expected).all() and (pixels(Image.open(path)) == expected).all()
    assert (np.asarray(decode(path.read_bytes(), "x")) == expected).all()
    stored = Image.open(path)
    array = np.asarray(stored)
    if name == "exif3.jpg":
        array = array[::-1, ::-1]
    assert (pixels(array) == expected).all()
    tensor = torch.from_numpy(array.copy())
    assert (pixels(tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)) == expected).all()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


WIDE = (np.linspace(0, 4095, 64)[None].repeat(32, 0) + ROWS).astype(np.uint16)


def tiff(values: np.ndarray, photometric: int, order: str = "<", sample_format: int = 1) -> bytes:
    """A grey TIFF of one strip."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries |= {279: len(data), 339: sample_format}
    rows = b"".join(
        struct.pack(order + "HHIHH", tag, 3, 1, value, 0) if value < 1 << 16 else struct.pack(order + "HHII", tag, 4, 1, value)
        for tag, value in sorted(entries.items())
    )
    start = 8 + len(data)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + data + struct.pack(order + "H", len(entries)) + rows + bytes(4)


def colour_tiff(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit colour."""
    data = values.astype("<u2").tobytes()
    height, width = values.shape[:2]
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: len(data), 284: 1}
    start = 8 + len(data)
    tags[258] = start + 2 + 12 * len(tags) + 4  # where its three values stand
    rows = b"".join(struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value) for tag, value in tags.items())
    bits = struct.pack("<HHH", 16, 16, 16)
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + rows + bytes(4) + bits


def png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit values of 2, 3 or 4 channels."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_16_bit_tiffs(order: str, white_is_zero: bool, signed: bool) -> None:
    values = (WIDE.astype(np.int32) - 2000).astype(np.int16) if signed else WIDE
    if white_is_zero:
        values = (values.max().astype(np.int32) + values.min() - values).astype(values.dtype)
    found = pixels(tiff(values, 0 if white_is_zero else 1, order, 2 if signed else 1))
    close(found, WIDE / WIDE.max() * 255, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "tiff"])
def test_16_bit_colour_is_read_with_all_its_bits_and_stretched_like_grey(mode: str) -> None:
    grey = WIDE
    as_grey = pixels(encoded(Image.fromarray(grey)))
    channels = {"RGB": 3, "tiff": 3, "RGBA": 4, "LA": 2}[mode]
    values = grey[..., None].repeat(channels, 2)
    if channels in (2, 4):
        values[..., -1] = 65535
    content = colour_tiff(values) if mode == "tiff" else png(values)
    assert (pixels(content) == as_grey).all()
    assert (pixels(Image.open(io.BytesIO(content))) == as_grey).all(), "a PIL image that is not loaded"
    if channels > 2:
        assert (pixels(values) == as_grey).all(), "an array"


def test_a_hot_pixel_does_not_blacken_a_picture() -> None:
    hot = WIDE.copy()
    hot[5, 5] = 65535
    expected = pixels(encoded(Image.fromarray(WIDE)))
    found = pixels(encoded(Image.fromarray(hot)))
    assert (np.delete(found.reshape(-1, 3), 5 * 64 + 5, 0) == np.delete(expected.reshape(-1, 3), 5 * 64 + 5, 0)).all()
    assert found[5, 5, 0] == 255
    assert pixels(dicom(hot, BitsStored=16, HighBit=15)).mean() == pytest.approx(expected.mean(), abs=2)
    assert value_range(np.array([0] * 500 + [4095] * 12)) == (0, 4095), "a small bright part is not an outlier"


def test_orientation_and_palettes() -> None:
    picture = Image.fromarray(np.dstack([COLUMNS * 4, ROWS * 8, ROWS * 0]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture, "PNG", exif=exif)
    expected = np.rot90(np.asarray(picture), -1)
    for source in (turned, Image.open(io.BytesIO(turned))):
        assert (pixels(source) == expected).all()
    few = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=40)
    for kind in ("PNG", "GIF", "TIFF"):
        assert (pixels(encoded(few, kind)) == np.asarray(few.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (np.array([[0, 255]] * 8, dtype=np.uint8), [0, 255]),
        (np.array([[False, True]] * 8), [0, 255]),
        (np.array([[0.0, 0.5]] * 8), [0, 128]),
        (torch.tensor([[0.0, 0.5]] * 8, dtype=torch.bfloat16), [0, 128]),
        (np.array([[-1000.0, 1000.0]] * 8), [0, 255]),
        (np.array([[0.001, 0.02]] * 8), [0, 255]),
        (np.array([[-128, 127]] * 8, dtype=np.int8), [0, 255]),
        (torch.tensor([[100, 4000]] * 8), [0, 255]),
    ],
)
def test_arrays_and_tensors(source: Any, expected: list[int]) -> None:
    assert pixels(source)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3, 16, 16)), "one picture of numbers"),
        (np.zeros((7, 16, 9)), "1, 3 or 4 channels"),
        (np.random.default_rng(0).normal(size=(3, 8, 8)), "as if they were normalised"),
        (np.full((8, 8), np.nan), "not finite"),
        (np.array([["a"]]), "one picture of numbers"),
        (17, "is int; a path, bytes"),
        ("nowhere.png", "Cannot read the image nowhere.png"),
        (b"", "given is an empty file \\(0 bytes\\)"),
        (bytes(4000), "4000 zero bytes"),
        (struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(99), "NIfTI volume, not a picture"),
        (struct.pack(">i", 540) + b"n+2\0\r\n\032\n" + bytes(600), "NIfTI volume, not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_what_is_no_picture_is_named(source: Any, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        open_picture(source)


def test_compressed_nifti_is_named() -> None:
    volume = struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(9999)
    with pytest.raises(M2I2Error, match=r"NIfTI volume \(.nii.gz\)"):
        open_picture(gzip.compress(volume))


def group(**values: Any) -> Sequence:
    item = Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    return Sequence([item])


def bare(data: bytes) -> bytes:
    return data[data.index(b"\x08\x00\x60\x00CS") :]


RGB = np.dstack([RAMP // 16, 255 - RAMP // 16, RAMP // 32]).astype(np.uint8)
COLOURED = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "PixelData": RGB.tobytes()}
COLOURED |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
FULL = RAMP / 4080 * 255
CHROMA = np.array([[-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
YBR = np.dstack([RGB @ np.array([0.299, 0.587, 0.114]), 128 + RGB @ CHROMA.T])
PARTIAL = np.dstack([16 + YBR[..., 0] * 219 / 255, *(128 + (YBR[..., i] - 128) * 224 / 255 for i in (1, 2))])


def in_422(samples: np.ndarray) -> bytes:
    """Y Y Cb Cr of every pair of pixels."""
    y, cb, cr = (samples[..., i].round().astype(np.uint8) for i in range(3))
    return np.stack([y[:, ::2], y[:, 1::2], cb[:, ::2], cr[:, ::2]], axis=2).tobytes()


IN_GROUPS = group(FrameVOILUTSequence=group(WindowCenter=1024, WindowWidth=2048))


def coloured(photometric: str, data: bytes) -> bytes:
    return dicom(RAMP, **COLOURED | {"PhotometricInterpretation": photometric, "PixelData": data})


@pytest.mark.parametrize(
    ("make", "expected", "most"),
    [
        (lambda: dicom(RAMP, PhotometricInterpretation="monochrome1"), 255 - FULL, 1),
        (lambda: dicom(RAMP, PhotometricInterpretation=None), FULL, 1),
        (lambda: bare(dicom(RAMP)), FULL, 1),
        (lambda: dicom(RAMP)[128:], FULL, 1),
        (lambda: dicom(RAMP << 4, HighBit=15), FULL, 1),
        (lambda: dicom(RAMP + 1, HighBit=15), FULL, 1),
        (lambda: dicom(RAMP, RescaleSlope=0, RescaleIntercept=5), FULL, 1),
        (lambda: dicom(RAMP, RescaleSlope=-1, RescaleIntercept=0), 255 - FULL, 1),
        (lambda: dicom(RAMP, SharedFunctionalGroupsSequence=IN_GROUPS), (RAMP / 2047 * 255).clip(0, 255), 1),
        (lambda: dicom(RAMP, WindowCenter=9000, WindowWidth=10), FULL, 1),
        (lambda: dicom(RAMP, WindowCenter=0.5, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT"), FULL, 1),
        (lambda: dicom(RAMP, **COLOURED), RGB, 0),
        (lambda: coloured("YBR_FULL", YBR.round().astype(np.uint8).tobytes()), RGB, 2),
        (lambda: coloured("YBR_PARTIAL_422", in_422(PARTIAL)), RGB, 30),
        (lambda: coloured("YBR_FULL", (RAMP // 16).astype(np.uint8)[..., None].repeat(3, 2).tobytes()), FULL, 1),
    ],
)
def test_dicom_variants(make: Callable[[], bytes], expected: np.ndarray, most: float) -> None:
    close(pixels(make()), expected, most)


def test_float_pixels() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP, FloatPixelData=(RAMP / 7 - 30).astype("<f4").tobytes(), BitsAllocated=32)))
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del dataset[keyword]
    out = io.BytesIO()
    dataset.save_as(out)
    close(pixels(out.getvalue()), FULL, 1)


_OF_12_BITS = b"\xff\xd8\xff\xc1" + struct.pack(">HBHHB", 11, 12, *RAMP.shape, 1) + b"\x01\x11\x00\xff\xd9\x00"
EMPTY_JPEG = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + struct.pack("<I", len(_OF_12_BITS)) + _OF_12_BITS
"""The size of a picture of 12 bits and nothing of it."""


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (COLOURED | {"PhotometricInterpretation": "HSV"}, "photometric interpretation is not one of"),
        (COLOURED | {"PhotometricInterpretation": "YBR_ICT"}, "JPEG 2000's colours without JPEG 2000"),
        (COLOURED | {"PhotometricInterpretation": "MONOCHROME2"}, "3 samples a pixel, and calls them MONOCHROME2"),
        ({"PixelAspectRatio": ["100", "1"]}, "100 times as high as wide"),
        ({"syntax": "1.2.840.10008.1.2.4.51", "PixelData": EMPTY_JPEG}, "JPEG with 12 bits per sample"),
    ],
)
def test_dicom_files_that_are_refused_say_why(header: dict[str, Any], message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        open_picture(dicom(RAMP, **header))


def test_pixels_that_are_not_square_are_made_so() -> None:
    for header in ({"PixelAspectRatio": ["2", "1"]}, {"PixelSpacing": ["0.4", "0.2"]}):
        picture = open_picture(dicom(RAMP, **header))
        assert picture.image.size == (16, 32) and any("not square" in remark for remark in picture.remarks)
    assert open_picture(dicom(RAMP, PixelAspectRatio=["1", "2"])).image.size == (32, 16)


def faint() -> Image.Image:
    """Colours that alpha hides almost wholly, over white and over black."""
    image = Image.fromarray(COLOUR.astype(np.uint8))
    image.putalpha(2)
    return image


def one_colour_palette() -> Image.Image:
    image = Image.fromarray((COLUMNS * 4).astype(np.uint8)).convert("P")
    image.putpalette([7, 7, 7] * 256)
    return image


@pytest.mark.parametrize("make", [faint, one_colour_palette])
def test_what_varies_and_shows_nothing_is_told(make: Callable[[], Image.Image]) -> None:
    out = io.BytesIO()
    make().save(out, "PNG")
    for picture in (open_picture(out.getvalue()), open_picture(make())):
        assert np.ptp(np.asarray(picture.image), axis=(0, 1)).max() < 8
        assert any("nearly uniform although its pixels vary" in doubt for doubt in picture.doubts)


def test_nearly_uniform_pictures_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse = np.zeros((64, 64), dtype=np.uint8)
    sparse[0, :30] = np.arange(30) * 8
    Image.fromarray(sparse).save(tmp_path / "dark.png")
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "fine.png")
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "odd.dcm").write_bytes(dicom(RAMP, WindowCenter=9000, WindowWidth=10))
    names = ("dark.png", "fine.png", "black.png", "odd.dcm")
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{name},a chest\n" for name in names))
    words = ["captions", "json", str(tmp_path / "t.csv"), "--output", str(tmp_path / "s"), "--side", "32", "--workers", "1"]
    assert make_shards(words) == 0
    out = capsys.readouterr().out
    assert "look at 2 images or captions that may be wrong; they are listed in" in out
    rows = [json.loads(line) for line in (tmp_path / "s" / "doubts.jsonl").read_text().splitlines()]
    assert [(row["key"], row["doubt"][:20]) for row in rows] == [("dark", "It is nearly uniform"), ("odd", "Its window lies besi")]
    notes = read_index(tmp_path / "s")["notes"]
    assert notes["It is nearly uniform although its pixels vary; look at it."] == 1
    assert len(ShardSplit.open(tmp_path / "s", "train", "captions")) == 4
