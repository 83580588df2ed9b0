"""Local features: patches by which an image is recognised when it is cropped, turned, framed or one of several panels.

This is SIFT (Lowe, "Distinctive image features from scale-invariant keypoints", 2004) with square-rooted descriptors
(Arandjelovic and Zisserman, 2012). Dark places are described as if black and white were exchanged, so that an inverted image has
the same features. The images are small, so a blur is a product with two banded matrices.

Places and scales are in units of the image's longer side, angles in radians from the x axis towards the y axis (downwards).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 176
"""Side of the square that has as many pixels as the image in which features are sought."""
MOST = 160
"""Places an image has at most, those of the highest contrast."""
_SIGMA, _PER_OCTAVE, _SMALLEST = 1.6, 3, 16
_ROWS = 32
"""Places that are described at a time, so that their samples stay in a core's cache."""
_CONTRAST, _EDGE = 0.004, 10.0
"""Least contrast (of 1) and largest ratio of the principal curvatures of a place."""
_GRID = np.arange(16, dtype=np.float32) - 7.5
_V, _U = (axis.ravel() for axis in np.meshgrid(_GRID, _GRID, indexing="ij"))
_TENTS = np.maximum(0, 1 - np.abs(_GRID[:, None] / 4 + 1.5 - np.arange(4, dtype=np.float32)))
_CELLS = np.einsum("va,ub->abvu", _TENTS, _TENTS).reshape(16, 256)
"""How much each of the 16 x 16 samples of a patch counts in each of its 4 x 4 cells."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Features:
    """The local features of an image."""

    places: Floats
    """[n, 4]: x, y, scale, angle."""
    descriptors: NDArray[np.uint8]
    """[n, 128]: 4 x 4 cells (v, u) of 8 directions; 512 times a vector of unit length."""
    width: float
    """Of the image, in units of its longer side."""

    def __len__(self) -> int:
        return len(self.places)

    def mirrored(self) -> "Features":
        """The features of the image mirrored left to right."""
        places = self.places.copy()
        places[:, 0], places[:, 3] = self.width - places[:, 0], np.pi - places[:, 3]
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, -np.arange(8) % 8]
        return replace(self, places=places, descriptors=cells.reshape(-1, 128))


def units(descriptors: NDArray[np.uint8]) -> Floats:
    """[n, 128] float32 of unit length."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def features_of(image: Image.Image) -> Features:
    """The features of a grey image (mode L)."""
    longest, middle = max(image.size), (image.width * image.height) ** 0.5
    # Multiples of 16 so that few blur matrices are needed; what that squeezes is undone in the places.
    width, height = (max(32, 16 * round(SIDE * side / middle / 16)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    octaves = _octaves(pixels)
    rows = np.concatenate([_extrema(levels, number) for number, levels in enumerate(octaves)])
    best = rows[np.argsort(-np.abs(rows[:, 4]), kind="stable")[:MOST]]
    chosen, angles, descriptors = _described(_gradients(octaves), best[np.argsort(best[:, 0], kind="stable")])
    step = 2 ** chosen[:, 0]
    x = (chosen[:, 3] * step + 0.5) * image.width / longest / width
    y = (chosen[:, 2] * step + 0.5) * image.height / longest / height
    places = np.column_stack([x, y, _scale(chosen[:, 1]) * step / max(width, height), angles])
    return Features(places.astype(np.float32), descriptors, image.width / longest)


@lru_cache(maxsize=256)
def _blur_matrix(size: int, sigma: float) -> Floats:
    """[size, size]: a Gaussian of ``sigma`` pixels, mirrored at the ends."""
    radius = max(1, int(np.ceil(3.5 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    rows = np.repeat(np.arange(size), len(offsets))
    columns = (rows + np.tile(offsets, size)) % (2 * size)
    columns = np.minimum(columns, 2 * size - 1 - columns)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (rows, columns), np.tile(weights / weights.sum(), size))
    return matrix.astype(np.float32)


def blurred(pixels: Floats, sigma: float) -> Floats:
    """[H, W] under a Gaussian of ``sigma`` pixels."""
    sigma = round(sigma, 2)
    return _blur_matrix(pixels.shape[0], sigma) @ pixels @ _blur_matrix(pixels.shape[1], sigma).T


def _octaves(pixels: Floats) -> list[Floats]:
    """Of each octave [6, H, W]: the image under blurs from 1.6 pixels upwards, three to a doubling."""
    base = blurred(pixels, float(np.sqrt(_SIGMA**2 - 0.25)))
    found = []
    while min(base.shape) >= _SMALLEST:
        more = [_SIGMA * float(np.sqrt(4 ** (i / _PER_OCTAVE) - 1)) for i in range(1, _PER_OCTAVE + 3)]
        found.append(np.stack([base, *(blurred(base, sigma) for sigma in more)]))
        base = np.ascontiguousarray(found[-1][_PER_OCTAVE, ::2, ::2])
    return found


def _scale(level: Floats) -> Floats:
    """The blur of a level, in pixels of its octave."""
    return _SIGMA * 2 ** (level / _PER_OCTAVE)


def _extrema(levels: Floats, octave: int) -> Floats:
    """[n, 5]: octave, level, y, x to fractions of a pixel, and contrast (its sign tells dark from bright), of the extrema of
    differences of blurs that are no edges."""
    dog = np.diff(levels, axis=0)
    level, y, x = _peaks(dog, 1)
    deep = _peaks(dog, -1)
    level, y, x = (np.concatenate(pair) for pair in zip((level, y, x), deep, strict=True))

    def at_offset(dl: int, dy: int, dx: int) -> Floats:
        return dog[level + dl, y + dy, x + dx]

    centre = at_offset(0, 0, 0)
    dxx = at_offset(0, 0, 1) + at_offset(0, 0, -1) - 2 * centre
    dyy = at_offset(0, 1, 0) + at_offset(0, -1, 0) - 2 * centre
    dxy = (at_offset(0, 1, 1) - at_offset(0, 1, -1) - at_offset(0, -1, 1) + at_offset(0, -1, -1)) / 4
    trace, determinant = dxx + dyy, dxx * dyy - dxy**2
    good = (determinant > 0) & (trace**2 * _EDGE < (_EDGE + 1) ** 2 * determinant)

    def moved(up: Floats, down: Floats) -> Floats:
        curve = up + down - 2 * centre
        return np.clip((down - up) / 2 / np.where(curve == 0, 1, curve), -0.5, 0.5)

    rows = [
        np.full(len(level), octave),
        level + moved(at_offset(1, 0, 0), at_offset(-1, 0, 0)),
        y + moved(at_offset(0, 1, 0), at_offset(0, -1, 0)),
        x + moved(at_offset(0, 0, 1), at_offset(0, 0, -1)),
        centre,
    ]
    return np.column_stack(rows)[good].astype(np.float32)


def _peaks(dog: Floats, sign: int) -> tuple[NDArray[np.int64], ...]:
    """Level, y and x of the places of enough contrast whose value times ``sign`` none of their 26 neighbours exceeds."""
    values = dog * np.float32(sign)
    inner = values[1:-1, 1:-1, 1:-1]
    wanted = inner > _CONTRAST
    for away in (values[1:-1, :-2, 1:-1], values[1:-1, 2:, 1:-1], values[1:-1, 1:-1, :-2], values[1:-1, 1:-1, 2:]):
        wanted &= inner >= away
    index = np.flatnonzero(wanted)
    _, height, width = dog.shape
    level, rest = np.divmod(index, (height - 2) * (width - 2))
    y, x = np.divmod(rest, width - 2)
    centre = ((level + 1) * height + y + 1) * width + x + 1
    offsets = (np.arange(-1, 2)[:, None, None] * height + np.arange(-1, 2)[:, None]) * width + np.arange(-1, 2)
    flat = values.ravel()
    kept = centre[(flat[centre[:, None] + offsets.ravel()] <= flat[centre, None]).all(axis=1)]
    return np.unravel_index(kept, dog.shape)


@dataclass(frozen=True)
class _Gradients:
    """Of the levels at which places are described, all octaves one behind the other."""

    down: Floats
    across: Floats
    starts: Floats
    """Of each octave, its first value."""
    heights: Floats
    widths: Floats


def _gradients(octaves: list[Floats]) -> _Gradients:
    down, across = [], []
    for levels in octaves:
        chosen = levels[1 : _PER_OCTAVE + 1]
        down.append(_slope(chosen.swapaxes(1, 2)).swapaxes(1, 2).ravel())
        across.append(_slope(chosen).ravel())
    sizes = np.array([(len(one), *levels.shape[1:]) for one, levels in zip(down, octaves, strict=True)], dtype=np.float32)
    starts = np.cumsum(sizes[:, 0]) - sizes[:, 0]
    return _Gradients(np.concatenate(down), np.concatenate(across), starts, sizes[:, 1], sizes[:, 2])


def _slope(values: Floats) -> Floats:
    """Twice the central differences along the last axis."""
    found = np.empty_like(values)
    np.subtract(values[..., 2:], values[..., :-2], out=found[..., 1:-1])
    for here, (high, low) in ((0, (1, 0)), (-1, (-1, -2))):
        found[..., here] = 2 * (values[..., high] - values[..., low])
    return found


def _described(gradients: _Gradients, found: Floats) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Rows of ``found`` (octave, level, y, x, contrast), one for every main direction, with the direction and the descriptor."""
    blocks = [_turned(gradients, found[start : start + _ROWS]) for start in range(0, max(1, len(found)), _ROWS)]
    found, turn = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    starts = range(0, max(1, len(found)), _ROWS)
    descriptors = [_descriptors(gradients, found[n : n + _ROWS], turn[n : n + _ROWS]) for n in starts]
    return found, turn, np.concatenate(descriptors)


def _turned(gradients: _Gradients, found: Floats) -> tuple[Floats, Floats]:
    """Rows of ``found``, one for every main direction, and the directions."""
    size, turn = _scale(found[:, 1]), np.zeros(len(found), dtype=np.float32)
    strength, angle = _patches(gradients, found, 0.6 * size, turn)
    strength *= np.exp(-(_U**2 + _V**2) * 0.36 / (2 * 1.5**2))
    bins = np.rint(angle * (36 / (2 * np.pi))).astype(np.int64) % 36 + 36 * np.arange(len(found))[:, None]
    votes: NDArray[Any] = np.bincount(bins.ravel(), strength.ravel(), 36 * len(found)).reshape(-1, 36)
    for _ in range(2):
        votes = (np.roll(votes, 1, 1) + 2 * votes + np.roll(votes, -1, 1)) / 4
    left, right = np.roll(votes, 1, 1), np.roll(votes, -1, 1)
    peaks = (votes > left) & (votes >= right) & (votes >= 0.8 * votes.max(axis=1, keepdims=True, initial=0))
    number, peak = np.nonzero(peaks)
    before, at, after = left[number, peak], votes[number, peak], right[number, peak]
    turn = ((peak + (after - before) / 2 / (2 * at - before - after)) * (2 * np.pi / 36)).astype(np.float32)
    return found[number], turn


def _descriptors(gradients: _Gradients, found: Floats, turn: Floats) -> NDArray[np.uint8]:
    """[n, 128], of rows of ``found`` and their directions."""
    strength, angle = _patches(gradients, found, 0.75 * _scale(found[:, 1]), turn)
    strength *= np.exp(-(_U**2 + _V**2) / (2 * 8**2))
    direction = (angle - turn[:, None]) * np.float32(8 / (2 * np.pi))
    lower = np.floor(direction)
    share = direction - lower
    # [n, 8, 256]: each sample lies between two of eight directions
    histogram = np.zeros((len(found), 8, 256), dtype=np.float32)
    samples = np.arange(256) + 2048 * np.arange(len(found))[:, None]
    lower = lower.astype(np.int64) & 7
    np.put(histogram, 256 * lower + samples, strength * (1 - share))
    np.put(histogram, 256 * ((lower + 1) & 7) + samples, strength * share)
    vectors = (histogram.reshape(-1, 256) @ _CELLS.T).reshape(-1, 8, 16).swapaxes(1, 2).reshape(-1, 128)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    vectors = np.minimum(vectors, 0.2)
    vectors = np.sqrt(vectors / np.maximum(vectors.sum(axis=1, keepdims=True), 1e-9))
    return np.minimum(np.rint(512 * vectors), 255).astype(np.uint8)


def _patches(gradients: _Gradients, found: Floats, spacing: Floats, turn: Floats) -> tuple[Floats, Floats]:
    """Strength and direction [n, 256] of the gradients on a turned grid around each place; no strength outside the image.

    Where the contrast is negative the direction is the opposite one.
    """
    octave = found[:, 0].astype(np.int64)
    height, width = gradients.heights[octave, None], gradients.widths[octave, None]
    level = np.clip(np.rint(found[:, 1:2]) - 1, 0, _PER_OCTAVE - 1)
    cos, sin = (spacing * np.cos(turn))[:, None], (spacing * np.sin(turn))[:, None]
    rows = np.rint(found[:, 2:3] + sin * _U + cos * _V)
    columns = np.rint(found[:, 3:4] + cos * _U - sin * _V)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = np.minimum(np.maximum(rows, 0), height - 1), np.minimum(np.maximum(columns, 0), width - 1)
    # Below 2^24, so that float32 holds it exactly.
    index = ((level * height + rows) * width + columns + gradients.starts[octave, None]).astype(np.int64)
    sign = np.sign(found[:, 4:5])
    dy, dx = sign * gradients.down.take(index), sign * gradients.across.take(index)
    return np.sqrt(dx * dx + dy * dy) * inside, _angle(dy, dx)


def _angle(dy: Floats, dx: Floats) -> Floats:
    """The arc tangent of dy / dx in its quadrant to 1e-5 (Abramowitz and Stegun 4.4.49), ten times as fast as NumPy's."""
    up, along = np.abs(dy), np.abs(dx)
    ratio = np.minimum(up, along) / (np.maximum(up, along) + np.float32(1e-20))
    square = ratio * ratio
    angle = np.full_like(ratio, 0.0208351)
    for factor in (-0.0851330, 0.1801410, -0.3302995, 0.9998660):
        angle = angle * square + np.float32(factor)
    angle = angle * ratio
    angle = np.where(up > along, np.float32(np.pi / 2) - angle, angle)
    return np.copysign(np.where(dx < 0, np.float32(np.pi) - angle, angle), dy)
