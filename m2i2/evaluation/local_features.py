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
    found = [np.column_stack([np.full(len(rows := _extrema(o)), n, np.float32), rows]) for n, o in enumerate(octaves)]
    best = np.concatenate(found)
    best = best[np.argsort(-np.abs(best[:, 4]), kind="stable")[:MOST]]
    places, descriptors = [], []
    for number, levels in enumerate(octaves):
        chosen, angles, described = _described(levels, best[best[:, 0] == number, 1:])
        step = 2**number
        x = (chosen[:, 2] * step + 0.5) * image.width / longest / width
        y = (chosen[:, 1] * step + 0.5) * image.height / longest / height
        scale = _scale(chosen[:, 0]) * step / max(width, height)
        places.append(np.column_stack([x, y, scale, angles]))
        descriptors.append(described)
    return Features(np.concatenate(places).astype(np.float32), np.concatenate(descriptors), image.width / longest)


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


def _three(choose: np.ufunc, values: Floats, axis: int) -> Floats:
    """The extreme of every three neighbours along an axis."""
    values = values.swapaxes(0, axis)
    return choose(choose(values[:-2], values[1:-1]), values[2:]).swapaxes(0, axis)


def _extrema(levels: Floats) -> Floats:
    """[n, 4]: level, y, x to fractions of a pixel, and contrast (its sign tells dark from bright), of the extrema of differences
    of blurs that are no edges."""
    dog = np.diff(levels, axis=0)
    inner, high, low = dog[1:-1, 1:-1, 1:-1], dog, dog
    for axis in range(3):
        high, low = _three(np.maximum, high, axis), _three(np.minimum, low, axis)
    wanted = ((inner == high) & (inner > _CONTRAST)) | ((inner == low) & (inner < -_CONTRAST))
    level, y, x = (index + 1 for index in np.nonzero(wanted))

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
        level + moved(at_offset(1, 0, 0), at_offset(-1, 0, 0)),
        y + moved(at_offset(0, 1, 0), at_offset(0, -1, 0)),
        x + moved(at_offset(0, 0, 1), at_offset(0, 0, -1)),
        centre,
    ]
    return np.column_stack(rows)[good].astype(np.float32)


def _described(levels: Floats, found: Floats) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Rows of ``found`` (level, y, x, contrast), one for every main direction, with the direction and the descriptor."""
    down, across = (np.gradient(levels[1 : _PER_OCTAVE + 1], axis=axis) for axis in (1, 2))
    size, turn = _scale(found[:, 0]), np.zeros(len(found), dtype=np.float32)
    strength, angle = _patches(down, across, found, 0.6 * size, turn)
    strength *= np.exp(-(_U**2 + _V**2) * 0.36 / (2 * 1.5**2))
    bins = np.rint(angle * (36 / (2 * np.pi))).astype(np.int64) % 36 + 36 * np.arange(len(found))[:, None]
    votes: NDArray[Any] = np.bincount(bins.ravel(), strength.ravel(), 36 * len(found)).reshape(-1, 36)
    for _ in range(2):
        votes = (np.roll(votes, 1, 1) + 2 * votes + np.roll(votes, -1, 1)) / 4
    left, right = np.roll(votes, 1, 1), np.roll(votes, -1, 1)
    peaks = (votes > left) & (votes >= right) & (votes >= 0.8 * votes.max(axis=1, keepdims=True))
    number, peak = np.nonzero(peaks)
    before, at, after = left[number, peak], votes[number, peak], right[number, peak]
    turn = ((peak + (after - before) / 2 / (2 * at - before - after)) * (2 * np.pi / 36)).astype(np.float32)
    found, size = found[number], size[number]
    strength, angle = _patches(down, across, found, 0.75 * size, turn)
    strength *= np.exp(-(_U**2 + _V**2) / (2 * 8**2))
    direction = (angle - turn[:, None]) * (8 / (2 * np.pi))
    lower = np.floor(direction)
    share = (direction - lower).ravel()
    place = (lower.astype(np.int64) & 7).ravel() + np.arange(0, 8 * lower.size, 8)
    histogram = np.zeros(8 * lower.size, dtype=np.float32)
    histogram[place] = strength.ravel() * (1 - share)
    histogram[(place & ~7) + ((place + 1) & 7)] = strength.ravel() * share
    vectors = (_CELLS @ histogram.reshape(-1, 256, 8)).reshape(-1, 128)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    vectors = np.minimum(vectors, 0.2)
    vectors = np.sqrt(vectors / np.maximum(vectors.sum(axis=1, keepdims=True), 1e-9))
    return found, turn, np.minimum(np.rint(512 * vectors), 255).astype(np.uint8)


def _patches(down: Floats, across: Floats, found: Floats, spacing: Floats, turn: Floats) -> tuple[Floats, Floats]:
    """Strength and direction [n, 256] of the gradients on a turned grid around each place; no strength outside the image.

    Where the contrast is negative the direction is the opposite one.
    """
    _, height, width = down.shape
    level = np.clip(np.rint(found[:, 0]).astype(np.int64) - 1, 0, len(down) - 1)[:, None]
    cos, sin = (spacing * np.cos(turn))[:, None], (spacing * np.sin(turn))[:, None]
    rows = np.rint(found[:, 1:2] + sin * _U + cos * _V).astype(np.int64)
    columns = np.rint(found[:, 2:3] + cos * _U - sin * _V).astype(np.int64)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = (level * height + np.clip(rows, 0, height - 1)) * width + np.clip(columns, 0, width - 1)
    sign = np.sign(found[:, 3:4])
    dy, dx = sign * down.ravel()[index], sign * across.ravel()[index]
    return np.hypot(dx, dy) * inside, np.arctan2(dy, dx)
