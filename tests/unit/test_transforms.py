"""Images: decoded whatever their mode, refused beyond bounds, augmented from the sample's stream alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2i2.data.images.decoding import decode, without_colour
from m2i2.data.images.transforms import (
    OPERATIONS,
    Augmentation,
    EvaluationTransform,
    apply_operation,
    crop_box,
    denormalise,
    normalise,
)
from m2i2.data.loading.randomness import sample_generator
from m2i2.errors import M2I2Error


def picture(width: int = 120, height: int = 90) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    rows = np.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 3) % 256], axis=2)
    return Image.fromarray(rows.astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


AUGMENTATION = Augmentation(size=64, crop_scale=(0.2, 1.0), flip=False, randaugment=(2, 7))


def test_the_stream_of_a_sample_decides_and_nothing_else() -> None:
    data = encoded(picture())
    one, again, other = (AUGMENTATION(data, sample_generator(1, e, 5), "x") for e in (0, 0, 1))
    assert one.shape == (3, 64, 64) and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_streams_differ_by_seed_epoch_and_item() -> None:
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(40)]
    assert len({sample_generator(*key).integers(1 << 60) for key in keys}) == len(keys)


def test_crops_lie_inside_and_keep_the_asked_share() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        left, top, right, bottom = crop_box(120, 90, (0.2, 0.6), rng)
        assert 0 <= left < right <= 120 and 0 <= top < bottom <= 90
        assert 0.7 < (right - left) / (bottom - top) < 1.4
        shares.append((right - left) * (bottom - top) / (120 * 90))
    assert min(shares) > 0.18 and max(shares) < 0.62 and 0.36 < np.mean(shares) < 0.44
    assert crop_box(1000, 10, (0.9, 1.0), rng) == (493, 0, 506, 10), "no allowed crop fits: the central one"


def test_flips_happen_only_where_asked_for() -> None:
    plain = Augmentation(size=90, crop_scale=(1.0, 1.0), flip=False, randaugment=(0, 0))
    flipping = Augmentation(size=90, crop_scale=(1.0, 1.0), flip=True, randaugment=(0, 0))
    data = encoded(picture(90, 90))
    outcomes = [flipping(data, sample_generator(0, 0, i), "x") for i in range(200)]
    whole = plain(data, sample_generator(0, 0, 0), "x")
    mirrored = sum(torch.equal(o, whole.flip(2)) for o in outcomes)
    assert mirrored + sum(torch.equal(o, whole) for o in outcomes) == 200 and 70 < mirrored < 130


def reference(name: str, x: np.ndarray, sign: int) -> np.ndarray:
    """The official operations at magnitude 7, written plainly (nearest whole pixels where they move)."""
    if name == "AutoContrast":
        low, high = x.min((0, 1)), x.max((0, 1))
        return (x - low) * (255.0 / (high - low))
    if name == "Brightness":
        return np.clip(x * 1.36, 0, 255)
    if name == "Equalize":
        out = np.empty_like(x)
        for c in range(3):
            histogram = np.bincount(x[..., c].astype(int).ravel(), minlength=256)
            step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
            table = np.clip((np.cumsum(histogram) - histogram + step // 2) // max(step, 1), 0, 255)
            out[..., c] = table[x[..., c].astype(int)]
        return out
    if name == "Sharpness":
        smooth = x.copy()
        window = sum(
            x[1 + i : x.shape[0] - 1 + i, 1 + j : x.shape[1] - 1 + j] * (5 if i == j == 0 else 1)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        )
        smooth[1:-1, 1:-1] = window / 13
        return np.clip(smooth + 1.36 * (x - smooth), 0, 255)
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(float) + 0.5
    u, v = columns, rows
    if name == "ShearX":
        u = columns + sign * 0.21 * rows
    elif name == "ShearY":
        v = rows + sign * 0.21 * columns
    elif name == "TranslateX":
        u = columns + sign * 7
    elif name == "TranslateY":
        v = rows + sign * 7
    elif name == "Rotate":
        angle = -np.deg2rad(21 * sign)
        a, b = columns - width / 2, rows - height / 2
        u = a * np.cos(angle) + b * np.sin(angle) + width / 2
        v = -a * np.sin(angle) + b * np.cos(angle) + height / 2
    i, j = np.floor(v).astype(int), np.floor(u).astype(int)
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return np.where(inside[..., None], x[i.clip(0, height - 1), j.clip(0, width - 1)], 128)


class Fixed:
    """A generator that always draws the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_each_operation_is_the_official_one(name: str, sign: int) -> None:
    smooth = Image.fromarray((np.asarray(picture(96, 96)) // 2 + 40).astype(np.uint8)).resize((96, 96))
    smooth = smooth.resize((24, 24)).resize((96, 96), Image.Resampling.BICUBIC)
    planes = np.array(smooth).transpose(2, 0, 1)
    ours = apply_operation(planes, name, 7, Fixed(0.1 if sign > 0 else 0.9)).transpose(1, 2, 0).astype(float)  # type: ignore[arg-type]
    x = np.asarray(smooth, dtype=float)
    expected = x if name == "Identity" else reference(name, x, sign)
    difference = np.abs(ours - expected)
    assert np.percentile(difference, 90) <= 8, "apart from edges and from bilinear against nearest"
    assert np.abs(ours - x).mean() > 0.05 or name == "Identity", "it does something"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = picture()
    if mode == "I;16":
        ramp = np.linspace(1000, 9000, 120 * 90).reshape(90, 120).astype(np.uint16)
        data = encoded(Image.fromarray(ramp))
        found = np.asarray(decode(data, "x"))
        assert found.min() == 0 and found.max() == 255
        return
    data = encoded(image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    found = decode(data, "x")
    assert found.mode == "RGB" and found.size == (120, 90)
    if mode in ("RGB", "CMYK", "RGBA"):
        assert np.abs(np.asarray(found, float) - np.asarray(image, float)).mean() < 4


def test_orientation_is_applied() -> None:
    image, out = picture(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(out, "JPEG", exif=exif)
    assert decode(out.getvalue(), "x").size == (90, 120)


def test_large_jpegs_are_decoded_small_but_not_too_small() -> None:
    data = encoded(picture(2000, 1600), "JPEG")
    assert min(decode(data, "x", 256).size) in range(256, 512)
    assert decode(data, "x").size == (2000, 1600)


def test_what_cannot_be_decoded_names_the_image(tmp_path: Path) -> None:
    data = encoded(picture(), "JPEG")
    for broken in (b"", b"no image", data[: len(data) // 2]):
        with pytest.raises(M2I2Error, match="image scan-7 cannot be decoded"):
            decode(broken, "scan-7")
    with pytest.raises(M2I2Error, match="scan-8 has 11000 x 11000 pixels"):
        decode(encoded(Image.new("L", (11000, 11000))), "scan-8")


def test_evaluation_sees_the_whole_image_and_normalisation_goes_both_ways() -> None:
    image = EvaluationTransform(size=48)(encoded(picture()), "x")
    assert image.shape == (3, 48, 48)
    assert image[0, :, 0].float().mean() < 10 and image[0, :, -1].float().mean() > 240
    normal = normalise(image[None])
    assert float(normalise(torch.full((1, 3, 1, 1), 128, dtype=torch.uint8))[0, 0, 0, 0]) == pytest.approx(0.0764, abs=1e-3)
    assert torch.equal(denormalise(normal)[0], image)


def test_grey_images_are_augmented_as_their_rgb_selves() -> None:
    grey = picture().convert("L")
    for number in range(60):
        one = AUGMENTATION(encoded(grey), sample_generator(3, 0, number), "x")
        three = AUGMENTATION(encoded(grey.convert("RGB")), sample_generator(3, 0, number), "x")
        assert torch.equal(one, three), number


def test_images_without_colour_are_stored_grey() -> None:
    grey = picture().convert("L")
    assert without_colour(grey.convert("RGB")).mode == "L"
    assert without_colour(picture()).mode == "RGB"
