"""How alike two images are once one of them is laid over the other: cropped, turned, mirrored, squeezed or inverted.

Radiographs look alike, so likeness is measured on details, not on layout: an image less its own blur. An affine map is improved
by Gauss-Newton steps (Lucas and Kanade, 1981) until the details correlate most.

Coordinates are in units of an image's longer side. Maps are [2, 3] arrays from the first image to the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2i2.evaluation.local_features import Floats, blurred

Map = NDArray[np.float64]

THUMBNAIL = 128
COARSE, FINE = 24, 64
"""Pixels along what the two images share, at which maps are improved."""
_TILE, _LEAST_SPREAD = 9, 0.05
"""Pixels of a tile, and the least product of the two standard deviations in it (1 is the mean local contrast)."""
_STEPS, _LEAST_PIXELS, _SMALLEST_SHARE = 8, 300, 0.05
QUICK = ((COARSE, 1), (FINE, 2))
"""Pixels along what the two images share, and on every how many of them along x and y a map is improved: it has six unknowns."""
CAREFUL = ((FINE, 1),)


_GRID = (np.stack(np.meshgrid(*[np.arange(20, dtype=np.float64)] * 2), axis=-1).reshape(-1, 2) + 0.5) / 20


@dataclass(frozen=True)
class Alignment:
    """The best map found, and what it shows."""

    correlation: float
    """Of the details of what both show, the median over its parts; negative for an inverted image."""
    map: Map
    shares: tuple[float, float]
    """Which part of the first and of the second image the other shows too."""


def extent(image: Image.Image) -> NDArray[np.float64]:
    """Width and height in units of the longer side."""
    return np.array(image.size, dtype=np.float64) / max(image.size)


def oriented_map(first: Image.Image, second: Image.Image, turn: NDArray[np.float64]) -> Map:
    """The map of the whole first image, ``turn`` ([2, 2]) about its centre, to the whole second one."""
    linear = np.diag(extent(second)) @ turn @ np.diag(1 / extent(first))
    return np.column_stack([linear, extent(second) / 2 - linear @ (extent(first) / 2)])


def inverse(map_: Map) -> Map:
    """The map from the second image to the first."""
    linear = np.linalg.inv(map_[:, :2])
    return np.column_stack([linear, -linear @ map_[:, 2]])


def align(first: Image.Image, second: Image.Image, start: Map, passes: Sequence[tuple[int, int]] = QUICK) -> Alignment:
    """The alignment that ``start`` leads to in some passes. Both are grey thumbnails (mode L)."""
    found = Alignment(0.0, start, _shares(first, second, start))
    for side, every in passes:
        if min(found.shares) < _SMALLEST_SHARE:
            return Alignment(0.0, found.map, found.shares)
        found = _improved(first, second, found, side, every)
    return found


def _shares(first: Image.Image, second: Image.Image, map_: Map) -> tuple[float, float]:
    return _covered(first, second, map_), _covered(second, first, inverse(map_))


def _covered(one: Image.Image, other: Image.Image, map_: Map) -> float:
    """Which part of ``one`` the map takes into ``other``."""
    there = _GRID @ (map_[:, :2] * extent(one)).T + map_[:, 2]
    return float(((there >= 0) & (there <= extent(other))).all(axis=1).mean())


def _detail(image: Image.Image, density: float, sigma: float) -> tuple[Floats, NDArray[np.float64]]:
    """[h, w]: the image at about ``density`` pixels a unit, less its blur and over its local contrast; and its exact densities."""
    width, height = (max(8, round(density * side)) for side in extent(image))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    values = pixels - blurred(pixels, sigma)
    contrast = np.sqrt(np.maximum(blurred(values**2, 2 * sigma), 0))
    return np.divide(values, contrast + 1.0), np.array([width, height]) / extent(image)


def _improved(first: Image.Image, second: Image.Image, start: Alignment, side: int, every: int) -> Alignment:
    """Gauss-Newton steps at ``side`` pixels along what both images show."""
    shared = np.sqrt(start.shares[1] * np.prod(extent(second)))
    zoom = np.sqrt(abs(np.linalg.det(start.map[:, :2])))
    density = side / shared
    reduced = min(1.0, THUMBNAIL / density, THUMBNAIL / (density * zoom))
    sigma = reduced * side / 12
    one = _Detail(*_detail(first, density * zoom * reduced, sigma))
    other = _Detail(*_detail(second, density * reduced, sigma))
    least = _LEAST_PIXELS * min(1.0, side * reduced / FINE) ** 2
    back = _refined(one, other, inverse(start.map), every, least)
    map_ = inverse(back)
    target, there, tiles = other.pixels(1)
    inside, values = one.at(there, back, one.values[None])
    if len(inside) < least:
        return Alignment(0.0, map_, start.shares)
    correlation = _correlation(values[0], target[inside])
    if side != COARSE:
        correlation = _median_correlation(values[0], target[inside], tiles[inside])
    return Alignment(correlation, map_, _shares(first, second, map_))


def _refined(one: "_Detail", other: "_Detail", back: Map, every: int, least: float) -> Map:
    """The map from ``other`` to ``one`` that ``back`` leads to; at ``least`` so many pixels must lie in both."""
    gradients = np.stack([one.values, *np.gradient(one.values)[::-1]])  # values, along x, along y
    target_everywhere, there, _ = other.pixels(every)
    best, best_back = 0.0, back
    for step in range(_STEPS + 1):
        inside, (values, dx, dy) = one.at(there, back, gradients)
        if len(values) * every**2 < least:
            break
        target, at = target_everywhere[inside], there[inside]
        correlation = _correlation(values, target)
        if abs(correlation) <= abs(best) + 1e-4 and step:
            break
        best, best_back = correlation, back
        dx, dy = dx * np.float32(one.density[0]), dy * np.float32(one.density[1])
        columns = np.stack([dx * at[:, 0], dx * at[:, 1], dx, dy * at[:, 0], dy * at[:, 1], dy, values, np.ones_like(dx)])
        normal = (columns @ columns.T).astype(np.float64)
        solved = np.linalg.solve(normal + np.diag(1e-6 * np.diag(normal) + 1e-9), columns @ target)
        if abs(solved[6]) < 0.05:
            break
        back = back + np.clip(solved[:6].reshape(2, 3) / solved[6], -0.1, 0.1)
        if abs(np.linalg.det(back[:, :2])) < 1e-3:
            break
    return best_back


@dataclass(frozen=True)
class _Detail:
    """The details of an image at some density."""

    values: Floats
    """[h, w]."""
    density: NDArray[np.float64]
    """Pixels a unit along x and y."""

    def pixels(self, every: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """The values, places [n, 2] in units, and tiles of every ``every``-th pixel along x and y."""
        height, width = self.values.shape
        rows, columns = np.indices((height, width))[:, ::every, ::every].reshape(2, -1)
        there = ((np.stack([columns, rows], axis=1) + 0.5) / self.density).astype(np.float32)
        return self.values[::every, ::every].ravel(), there, rows // _TILE * ((width - 1) // _TILE + 1) + columns // _TILE

    def at(self, there: Floats, map_: Map, layers: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Which of the places ``there`` the map takes into this image, and the bilinear values [layers, n] of ``layers`` there."""
        linear = (map_ * self.density[:, None]).astype(np.float32)
        x, y = linear[:, :2] @ there.T + (linear[:, 2:] - np.float32(0.5))
        height, width = self.values.shape
        inside = np.flatnonzero((x >= 0) & (y >= 0) & (x <= width - 1.001) & (y <= height - 1.001))
        return inside, _sampled(layers, x[inside], y[inside])


def _sampled(layers: Floats, x: Floats, y: Floats) -> Floats:
    """[layers, n]: bilinear values at (x, y) in pixels."""
    left, top = x.astype(np.int64), y.astype(np.int64)
    u, v = x - left.astype(np.float32), y - top.astype(np.float32)
    width = layers.shape[2]
    flat, index = layers.reshape(len(layers), -1), top * width + left
    upper, lower = flat.take(index, axis=1), flat.take(index + width, axis=1)
    upper += (flat.take(index + 1, axis=1) - upper) * u
    lower += (flat.take(index + width + 1, axis=1) - lower) * u
    return np.asarray(upper + (lower - upper) * v)


def _median_correlation(one: Floats, other: Floats, tiles: NDArray[np.int64]) -> float:
    """The median over tiles in which both have details: a caption or a frame on one of two images spoils few of them."""
    counts = np.bincount(tiles)
    sums = [np.bincount(tiles, product) / np.maximum(counts, 1) for product in (one, other, one * one, other * other, one * other)]
    spread = np.sqrt(np.maximum((sums[2] - sums[0] ** 2) * (sums[3] - sums[1] ** 2), 0))
    usable = (counts >= _TILE**2 // 2) & (spread > _LEAST_SPREAD)
    if usable.sum() < 6:
        return 0.0
    return float(np.median((sums[4] - sums[0] * sums[1])[usable] / spread[usable]))


def _correlation(one: Floats, other: Floats) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 1e-3 else 0.0
