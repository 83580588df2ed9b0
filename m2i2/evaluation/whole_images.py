"""Which whole images of two sets look most alike, in eight orientations and inverted or not.

An image is squeezed to a square of 24 pixels and taken apart into four parts, even or odd along x and along y. A flip only
changes the signs of parts, so the correlations in all eight orientations follow from the products of four parts, upright and
transposed: a quarter of the arithmetic of eight correlations.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2i2.evaluation.local_features import Floats, blurred

CANDIDATE = 0.75
"""Least correlation of whole images that are laid over each other."""
_SIDE, _BLOCK = 24, 256
TURNS = tuple(
    np.diag([x, y]) @ (np.eye(2)[::-1] if transposed else np.eye(2))
    for transposed, x, y in product((False, True), (1, -1), (1, -1))
)
"""[2, 2] each: the eight ways to lay a sheet on a rectangle, the upright one first."""


def details(images: Sequence[Image.Image]) -> Floats:
    """[n, 24, 24] of unit length: each image squeezed to a square, less its blur; zeros for a blank one."""
    found = np.zeros((len(images), _SIDE, _SIDE), dtype=np.float32)
    for number, image in enumerate(images):
        small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
        values = small - blurred(small, _SIDE / 12)
        values -= values.mean()
        length = float(np.linalg.norm(values))
        if length > 1e-3:
            found[number] = values / length
    return found


def parts(squares: Floats) -> Floats:
    """[4, n, 144]: what is even or odd along y and x (even even, odd odd, even odd, odd even), of squares [n, 24, 24]."""
    half = _SIDE // 2
    top, bottom = squares[:, :half], squares[:, : half - 1 : -1]
    found = []
    for along_y in (top + bottom, top - bottom):
        left, right = along_y[:, :, :half], along_y[:, :, : half - 1 : -1]
        found += [(left + right) / 2, (left - right) / 2]
    order = (0, 3, 1, 2)
    return np.stack([found[n].reshape(len(squares), -1) for n in order])


def partners(first: Floats, second: Floats) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """(first, second, turn): of each first image the second one whose details correlate most, positively or negatively.

    Both are details [n, 24, 24]. Pairs below `CANDIDATE` are left out.
    """
    if not len(first) or not len(second):
        return
    theirs = parts(second).swapaxes(1, 2).copy()
    room = np.empty((7, _BLOCK, _BLOCK), dtype=np.float32)
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        sides = parts(block), parts(block.swapaxes(1, 2))
        best = np.full(len(block), CANDIDATE, dtype=np.float32)
        partner = np.full(len(block), -1)
        for column in range(0, len(second), _BLOCK):
            likeness = _likeness(sides, theirs[:, :, column : column + _BLOCK], room)
            better = np.flatnonzero(likeness.max(axis=1) > best)
            closest = likeness[better].argmax(axis=1)
            best[better], partner[better] = likeness[better, closest], column + closest
        for number in np.flatnonzero(partner >= 0).tolist():
            yield start + number, int(partner[number]), _turn(block[number], second[partner[number]])


def _likeness(sides: tuple[Floats, Floats], theirs: Floats, room: Floats) -> Floats:
    """[n, m]: the largest absolute correlation over the eight orientations. One side is upright, the other transposed.

    ``room`` is memory for it: fresh pages would cost more than the arithmetic.
    """
    *products, one, other, best = room[:, : sides[0].shape[1], : theirs.shape[2]]
    both, neither, down, across = products
    best[:] = 0
    for side in sides:
        for n, product_ in enumerate(products):
            np.matmul(side[n], theirs[n], out=product_)
        # |a + b| or |a - b|, the larger, is |a| + |b|: the four flips of a sheet by two sums
        for sign in (np.add, np.subtract):
            np.abs(sign(both, neither, out=one), out=one)
            np.abs(sign(down, across, out=other), out=other)
            np.maximum(best, np.add(one, other, out=one), out=best)
    return best


def _turn(one: Floats, other: Floats) -> NDArray[np.float64]:
    """The orientation in which two details correlate most."""
    flat, values = other.ravel(), []
    for turn in TURNS:
        turned = (one.T if turn[0, 0] == 0 else one)[:: int(turn[1].sum()), :: int(turn[0].sum())]
        values.append(abs(float(turned.ravel() @ flat)))
    return TURNS[int(np.argmax(values))]
