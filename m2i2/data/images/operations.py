"""RandAugment's operations on [C, H, W] bytes, each as Pillow does it (within 1): every channel alone, C is 1 for a grey image."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from m2i2.data.images.resizing import Pixels

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
_GREY = 128
_LEVELS = np.arange(256)


def apply_operation(image: Pixels, name: str, magnitude: float, rng: np.random.Generator) -> Pixels:
    """One operation of RandAugment at ``magnitude`` of 10 (official ranges); what lies outside becomes grey."""
    level = magnitude / 10
    sign = -1.0 if name.startswith(("Shear", "Translate", "Rotate")) and rng.random() > 0.5 else 1.0
    match name:
        case "AutoContrast":
            return _looked_up(image, [_contrast(channel) for channel in image])
        case "Equalize":
            return _looked_up(image, [_equal(channel) for channel in image])
        case "Brightness":
            return _looked_up(image, [np.minimum(_LEVELS * (level * 1.8 + 0.1), 255)])
        case "Sharpness":
            return _sharpened(image, level * 1.8 + 0.1)
        case "ShearX":
            return _moved(image, (1, sign * level * 0.3, 0, 0, 1, 0))
        case "ShearY":
            return _moved(image, (1, 0, 0, sign * level * 0.3, 1, 0))
        case "TranslateX":
            return _moved(image, (1, 0, sign * level * 10, 0, 1, 0))
        case "TranslateY":
            return _moved(image, (1, 0, 0, 0, 1, sign * level * 10))
        case "Rotate":
            return _moved(image, _rotation(sign * level * 30, image.shape[2], image.shape[1]))
    return image


def _looked_up(image: Pixels, tables: list[NDArray[np.float64] | NDArray[np.int64]]) -> Pixels:
    """Every level replaced by what its channel's table, or the only one, has for it."""
    content = bytearray()
    for part, table in zip([image] if len(tables) == 1 else image, tables, strict=True):
        content += part.tobytes().translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(content, dtype=np.uint8).reshape(image.shape)


def _contrast(channel: Pixels) -> NDArray[np.float64]:
    """The darkest level becomes 0, the brightest 255."""
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return _LEVELS.astype(np.float64)
    scale = 255.0 / (high - low)
    return (_LEVELS * scale - low * scale).clip(0, 255)


def _equal(channel: Pixels) -> NDArray[np.int64]:
    """Every level becomes about as frequent as any other."""
    counts = torch.bincount(torch.from_numpy(channel).reshape(-1), minlength=256).numpy()
    present = counts[counts > 0]
    step = int(present[:-1].sum()) // 255
    if len(present) <= 1 or not step:
        return _LEVELS
    return ((np.cumsum(counts) - counts + step // 2) // step).clip(0, 255)


def _sharpened(image: Pixels, factor: float) -> Pixels:
    """Away from its smooth self (3 x 3, the middle five times), or towards it; the outermost pixels stay."""
    out = image.copy()
    if min(image.shape[1:]) > 2:
        x = image.astype(np.float32)
        sums = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
        smooth = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
        x = x[:, 1:-1, 1:-1]
        smooth += 4 * x
        smooth += 6.5
        smooth *= np.float32(1 / 13)
        np.floor(smooth, out=smooth)
        x = x - smooth
        x *= np.float32(factor)
        x += smooth
        out[:, 1:-1, 1:-1] = x.clip(0, 255, out=x)
    return out


def _rotation(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Counter-clockwise, about the middle."""
    angle = -math.radians(degrees % 360.0)
    a, b, d, e = (round(v, 15) for v in (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)))
    x, y = width / 2, height / 2
    return a, b, x - a * x - b * y, d, e, y - d * x - e * y


def _moved(image: Pixels, matrix: tuple[float, ...]) -> Pixels:
    """Every pixel from where the matrix says, bilinear."""
    channels, height, width = image.shape
    places, across, down = _places(height, width, matrix)
    source = np.full((channels, height * width + width + 2), _GREY, dtype=np.uint8)
    source[:, : height * width] = image.reshape(channels, -1)
    if across is None and down is None:
        return source.take(places, 1, mode="clip").reshape(image.shape)
    out = np.empty((channels, height * width), dtype=np.uint8)
    for channel, part in zip(source, out, strict=True):
        levels = channel.astype(np.float32)
        value = _between(levels, places, across)
        if down is not None:
            below = _between(levels[width:], places, across)
            below -= value
            below *= down
            value += below
        part[:] = value
    return out.reshape(image.shape)


def _between(levels: NDArray[np.float32], places: NDArray[np.intp], across: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The level at each place, mixed with the one to its right."""
    left = levels.take(places, mode="clip")
    if across is None:
        return left
    right = levels[1:].take(places, mode="clip")
    right -= left
    right *= across
    right += left
    return right


@lru_cache(maxsize=32)
def _places(
    height: int, width: int, matrix: tuple[float, ...]
) -> tuple[NDArray[np.intp], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """For every pixel, where the upper left of the four that it is mixed of lies; the shares of the right and of the lower ones.

    A place behind the image's end stands for outside. Shares that are all 0 are None: a shear needs two pixels, not four.
    """
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[:height, :width] + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    outside = (across < 0) | (across >= width) | (down < 0) | (down >= height)
    column, row = np.floor(across - 0.5), np.floor(down - 0.5)
    right = np.where((column < 0) | (column >= width - 1) | outside, 0, across - 0.5 - column)
    lower = np.where((row < 0) | (row >= height - 1) | outside, 0, down - 0.5 - row)
    places = np.where(outside, height * width, row.clip(0, height - 1) * width + column.clip(0, width - 1))
    shares = [share.astype(np.float32).ravel() if share.any() else None for share in (right, lower)]
    return places.astype(np.intp).ravel(), shares[0], shares[1]
