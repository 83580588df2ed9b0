"""The fast way from bytes to pixels against Pillow's: the same decoding, crops and operations, the same refusals."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from m2i2.data.images import decoding
from m2i2.data.images.bounds import plain_jpeg
from m2i2.data.images.decoding import decode, decode_pixels
from m2i2.data.images.operations import OPERATIONS, apply_operation
from m2i2.data.images.resizing import resize
from m2i2.data.images.transforms import Augmentation, crop_box
from m2i2.data.loading.randomness import sample_generator
from m2i2.errors import M2I2Error


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shades, hard edges, saturated blocks and noise: what resizing and JPEG find hard."""
    rng = np.random.default_rng((seed, width, height))
    y, x = np.mgrid[:height, :width]
    waves = [127 + 127 * np.sin(x / rng.uniform(2, 40) + y / rng.uniform(2, 40)) for _ in range(3)]
    picture = np.stack(waves, 2) + rng.normal(0, 8, (height, width, 3))
    for _ in range(6):
        top, left = rng.integers(height), rng.integers(width)
        picture[top : top + height // 4 + 1, left : left + width // 4 + 1] = rng.choice([0, 255], 3)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


GREY, CMYK = {"mode": "L"}, {"mode": "CMYK"}
KINDS: dict[str, tuple[tuple[int, int], dict[str, Any], bool]] = {
    "colour": ((333, 288), {"quality": 90}, True),
    "grey": ((288, 301), GREY, True),
    "full colour resolution": ((200, 211), {"subsampling": 0}, True),
    "poor": ((97, 151), {"quality": 10}, True),
    "progressive": ((231, 179), {"progressive": True}, True),
    "grey and progressive": ((131, 257), GREY | {"progressive": True}, True),
    "restarts": ((160, 99), {"restart_marker_rows": 1}, True),
    "comment": ((64, 64), {"comment": b"a comment"}, True),
    "one pixel": ((1, 1), {}, True),
    "one column": ((1, 77), GREY, True),
    "one row": ((83, 1), {}, True),
    "cmyk": ((120, 90), CMYK, False),
    "profile": ((64, 48), {"icc_profile": b"profile"}, False),
    "large": ((1800, 1500), {}, False),
    **{f"orientation {n}": ((121, 83), turned(n), False) for n in range(1, 9)},
}


def sample(kind: str) -> bytes:
    size, options, _ = KINDS[kind]
    mode = options.get("mode", "RGB")
    return jpeg(scene(*size).convert(mode), **{name: value for name, value in options.items() if name != "mode"})


def pillow(image: Image.Image, size: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """[C, size, size] as Pillow resizes it."""
    return channels(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def channels(image: Image.Image) -> np.ndarray:
    values = np.array(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, plain = sample(kind), KINDS[kind][2]
    expected = decode(data, "x", 573, keep_grey=True)
    found = decode_pixels(data, "x", 573)
    assert found.shape[2] == len(expected.getbands())
    assert np.array_equal(found.transpose(2, 0, 1), channels(expected))
    monkeypatch.setattr(decoding, "decode", lambda *a, **b: pytest.fail("the usual way was taken"))
    if plain:
        decode_pixels(data, "x", 573)
    else:
        with pytest.raises(pytest.fail.Exception, match="usual way"):
            decode_pixels(data, "x", 573)


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_those_of_pillow(kind: str) -> None:
    """Decoded, cropped and resized within 2 of 255, boxes from the same stream; grey images stay one channel until the end."""
    data = sample(kind)
    for number, (size, scale) in enumerate([(256, (0.2, 1.0)), (97, (0.05, 1.0)), (98, (1.0, 1.0)), (30, (0.9, 1.0))] * 3):
        augmentation = Augmentation(size=size, crop_scale=scale, flip=True, randaugment=(0, 0))
        found = augmentation(data, sample_generator(0, 1, number), "x")
        assert found.dtype == torch.uint8 and found.is_contiguous()
        rng = sample_generator(0, 1, number)
        image = decode(data, "x", math.ceil(size / math.sqrt(scale[0])), keep_grey=True)
        expected = pillow(image, size, crop_box(image.width, image.height, scale, rng))
        if rng.random() < 0.5:
            expected = expected[:, :, ::-1]
        assert difference(found.numpy(), np.broadcast_to(expected, (3, size, size))) <= 2, (kind, number)


def test_any_box_is_resized_as_by_pillow() -> None:
    rng = np.random.default_rng(7)
    for number in range(300):
        width, height = (int(n) for n in rng.integers(1, 300, 2))
        image = scene(width, height, number)
        image = image.convert("L") if number % 2 else image
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
        size = int(rng.choice([1, 2, 3, 17, 64, 98, box[2] - box[0], height, width]))
        found = resize(channels(image).transpose(1, 2, 0), size, box)
        assert difference(found, pillow(image, size, box)) <= 2, (width, height, box, size)


def by_pillow(image: Image.Image, name: str, magnitude: float, sign: float) -> Image.Image:
    """The operations as Pillow has them."""
    level, fill = magnitude / 10, 128 if image.mode == "L" else (128, 128, 128)

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=fill)

    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(level * 1.8 + 0.1)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(level * 1.8 + 0.1)
        case "ShearX":
            return affine(1, sign * level * 0.3, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, sign * level * 0.3, 1, 0)
        case "TranslateX":
            return affine(1, 0, sign * level * 10, 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, sign * level * 10)
        case "Rotate":
            return image.rotate(sign * level * 30, Image.Resampling.BILINEAR, fillcolor=fill)
    return image


class Fixed:
    """A generator that always draws the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(name: str) -> None:
    images = [
        *(scene(side, side).convert(mode) for side in (1, 2, 3, 64, 97) for mode in ("L", "RGB")),
        *(Image.new("RGB", (16, 16), colour) for colour in ("black", (0, 7, 255))),
    ]
    for image in images:
        for magnitude in (0, 3.3, 7, 10):
            for sign in (1.0, -1.0):
                rng: Any = Fixed(0.1 if sign > 0 else 0.9)
                found = apply_operation(channels(image), name, magnitude, rng)
                assert difference(found, channels(by_pillow(image, name, magnitude, sign))) <= 1, (image, magnitude, sign)


@pytest.mark.parametrize("kind", ["colour", "grey", "progressive", "one row"])
def test_damaged_files_end_as_with_pillow(kind: str) -> None:
    """The same pixels or the same error, whichever decoder saw the bytes first."""
    data = sample(kind)
    assert plain_jpeg(data)
    cut = [data[:n] for n in (0, 1, 2, 3, 20, len(data) // 2, len(data) - 1)]
    outcomes = set()
    for broken in [*cut, *(data[:n] + bytes([data[n] ^ 0xFF]) + data[n + 1 :] for n in range(2, len(data), len(data) // 97 + 1))]:
        found: Any
        try:
            expected: Any = channels(decode(broken, "scan-7", 573, keep_grey=True))
        except M2I2Error as error:
            expected = str(error)
        try:
            found = decode_pixels(broken, "scan-7", 573).transpose(2, 0, 1)
        except M2I2Error as error:
            found = str(error)
        assert np.array_equal(found, expected), (len(broken), found, expected)
        outcomes.add(type(found))
    assert outcomes == {str, np.ndarray}


def test_a_header_that_passes_for_plain_says_what_pillow_finds() -> None:
    """Whatever is changed in it: the bounds were checked against the size that is decoded."""
    seeds, passed = [sample(kind)[:700] for kind in ("colour", "grey", "progressive", "comment", "orientation 6", "cmyk")], 0
    rng = np.random.default_rng(3)
    for number in range(3000):
        data = bytearray(seeds[number % len(seeds)])
        for place in rng.integers(2, 640, int(rng.integers(1, 4))):
            data[place] = rng.integers(256) if rng.random() < 0.5 else rng.choice([0xFF, 0xC0, 0xC2, 0xC4, 0xDA, 0xE1, 0, 8])
        plain = plain_jpeg(bytes(data))
        if plain is None:
            continue
        try:
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
        except Exception:  # a table that Pillow refuses, and the decoder after it
            continue
        passed += 1
        assert plain[:3] == (*image.size, len(image.getbands())) and image.getexif().get(0x0112, 1) == 1
    assert passed > 300


def test_without_the_decoder_the_usual_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample("colour")
    expected = decode_pixels(data, "x", 573)
    monkeypatch.setattr(decoding, "_has_decoder", lambda: False)
    assert np.array_equal(decode_pixels(data, "x", 573), expected)


def test_bounds_come_before_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_decode_plain", lambda *_: pytest.fail("decoded"))
    data = jpeg(scene(24, 16).convert("L"), progressive=True)
    last = data.rfind(b"\xff\xda")
    with pytest.raises(M2I2Error, match="more than 100 JPEG scans"):
        decode_pixels(data[:last] + data[last:-2] * 200 + data[-2:], "x", 573)
    assert plain_jpeg(sample("colour")).one_scan and not plain_jpeg(sample("progressive")).one_scan  # type: ignore[union-attr]
    apart = bytearray(sample("colour"))  # a scan of one component is not the only one
    apart[apart.find(b"\xff\xda") + 4] = 1
    with pytest.raises(M2I2Error, match="more than 100 JPEG scans"):
        decode_pixels(bytes(apart) + b"\xff\xda\x00\x08\x01" * 200, "x", 573)
    huge = bytearray(jpeg(scene(24, 16)))
    frame = huge.find(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = (11000).to_bytes(2, "big") * 2
    with pytest.raises(M2I2Error, match="11000 x 11000 pixels"):
        decode_pixels(bytes(huge), "x", 573)
