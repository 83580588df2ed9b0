"""Which images of two large sets share local features in one arrangement: a search by an index of visual words.

Every descriptor of the second set belongs to a word, the nearest of some thousand centres (Sivic and Zisserman, 2003). A
descriptor of the first is compared with those of its word alone, and votes for the images of the most similar ones. The eight
images with the best votes, turned by about the same angle, are matched descriptor by descriptor; each match says how the one
image would lie on the other (Lowe 2004, 7.3), and the map that most matches agree on is the pair's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2i2.evaluation.alignment import Map
from m2i2.evaluation.local_features import Features, Floats, units

SIMILAR = 0.90
"""Least product of two descriptors (of unit length) that vote for their images."""
VOTES, INLIERS = 4, 7
"""Least agreeing votes of a pair that is matched, and least agreeing matches of a pair that is reported."""
_PER_WORD, _PER_FEATURE, _PER_IMAGE, _CHUNK, _BLOCK = 2048, 16, 8, 2000, 1024
_MOST_REPORTED = 3
_TOLERANCE, _TURN, _ZOOM = 0.025, np.radians(20), np.log(1.5)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Sighting:
    """Two images that share features."""

    first: int
    second: int
    map: Map
    """From the first image to the second, in units of their longer sides."""
    inliers: int
    """Matches that agree on the map."""


def sightings(
    first: Sequence[Features], second: Sequence[Features], progress: Callable[[int], None] = lambda done: None
) -> Iterator[Sighting]:
    """Pairs that share features in one arrangement, of each first image the three that agree most; mirrored or not."""
    if not sum(map(len, first)) or not sum(map(len, second)):
        return
    index = _Index(second)
    for start in range(0, len(first), _CHUNK):
        chunk = first[start : start + _CHUNK]
        proposed: dict[int, list[tuple[float, int, int]]] = {}
        sides = chunk, [features.mirrored() for features in chunk]
        for side, seen in enumerate(sides):
            for number, other, score in index.alike(seen):
                proposed.setdefault(number, []).append((score, other, side))
        for number, ranked in sorted(proposed.items()):
            best: dict[int, Sighting] = {}
            for _, other, side in sorted(ranked, reverse=True)[:_PER_IMAGE]:
                one = sides[side][number]
                found = arrangement(one, second[other])
                if found and (other not in best or best[other].inliers < found[1]):
                    map_ = _unmirrored(found[0], one.width) if side else found[0]
                    best[other] = Sighting(start + number, other, map_, found[1])
            yield from sorted(best.values(), key=lambda seen: -seen.inliers)[:_MOST_REPORTED]
        progress(start + len(chunk))


def _unmirrored(map_: Map, width: float) -> Map:
    """The map of the image itself, from that of its mirror image."""
    return np.column_stack([-map_[:, 0], map_[:, 1], map_[:, 2] + width * map_[:, 0]])


def arrangement(one: Features, other: Features) -> tuple[Map, int] | None:
    """The affine map that most matches agree on, and how many do; None for fewer than `INLIERS`."""
    products = units(one.descriptors) @ units(other.descriptors).T
    partner, back = products.argmax(axis=1), products.argmax(axis=0)
    mutual = np.flatnonzero((back[partner] == np.arange(len(one))) & (products.max(axis=1) >= 0.75))
    if len(mutual) < INLIERS:
        return None
    here, there = one.places[mutual].astype(np.float64), other.places[partner[mutual]].astype(np.float64)
    zoom, turn = np.log(there[:, 2] / here[:, 2]), there[:, 3] - here[:, 3]
    # [hypothesis, match]: how far each hypothesis puts the other matches from where they are, relative to its own; x + iy
    start, end = (places[:, 0] + 1j * places[:, 1] for places in (here, there))
    misses = np.abs(np.exp(zoom + 1j * turn)[:, None] * (start[None] - start[:, None]) - (end[None] - end[:, None]))
    tolerance = _TOLERANCE * np.maximum(1, np.exp(zoom))
    turned = np.abs((turn[None] - turn[:, None] + np.pi) % (2 * np.pi) - np.pi)
    agree = (misses <= tolerance[:, None]) & (turned <= _TURN) & (np.abs(zoom[None] - zoom[:, None]) <= _ZOOM)
    best = int(agree.sum(axis=1).argmax())
    inliers = agree[best]
    for _ in range(3):
        if _spread(here[inliers], there[inliers]) < INLIERS:
            return None
        design = np.column_stack([here[:, :2], np.ones(len(here))])
        map_ = np.linalg.lstsq(design[inliers], there[inliers, :2], rcond=None)[0].T
        misses_of = np.linalg.norm(design @ map_.T - there[:, :2], axis=1)
        inliers = (misses_of <= 0.7 * tolerance[best]) & (turned[best] <= _TURN)
    count = _spread(here[inliers], there[inliers])
    stretch = np.linalg.svd(map_[:, :2], compute_uv=False)
    if count < INLIERS or stretch[1] * 2 < stretch[0] or np.linalg.det(map_[:, :2]) <= 0:
        return None
    return map_, count


def _spread(here: NDArray[np.float64], there: NDArray[np.float64]) -> int:
    """How many different places the matches join: a place with two directions counts once."""
    return min(len(np.unique(np.rint(50 * places[:, :2]) @ (1, 1000))) for places in (here, there))


class _Index:
    """The descriptors of a set of images, by words."""

    def __init__(self, images: Sequence[Features]) -> None:
        self._images = np.repeat(np.arange(len(images)), [len(image) for image in images])
        self._places = np.concatenate([image.places for image in images])
        descriptors = np.concatenate([image.descriptors for image in images])
        self._centres = _centres(descriptors, max(1, len(descriptors) // _PER_WORD))
        words = self._words(descriptors)
        order = np.argsort(words, kind="stable")
        self._descriptors, self._images, self._places = descriptors[order], self._images[order], self._places[order]
        self._starts = np.searchsorted(words[order], np.arange(len(self._centres) + 1))
        self._count = len(images)

    def _words(self, descriptors: NDArray[np.uint8]) -> NDArray[np.int64]:
        blocks = [descriptors[n : n + 4096] for n in range(0, len(descriptors), 4096)]
        return np.concatenate([(units(block) @ self._centres.T).argmax(axis=1) for block in blocks])

    def alike(self, images: Sequence[Features]) -> list[tuple[int, int, float]]:
        """(number in ``images``, number in the index, score) of pairs that `VOTES` descriptors agree on."""
        owner = np.repeat(np.arange(len(images)), [len(image) for image in images])
        if not len(owner):
            return []
        places = np.concatenate([image.places for image in images])
        descriptors = np.concatenate([image.descriptors for image in images])
        mine, theirs, weights = self._votes(descriptors)
        turn = ((self._places[theirs, 3] - places[mine, 3]) % (2 * np.pi) / (2 * np.pi) * 12).astype(np.int64)
        pairs = owner[mine] * self._count + self._images[theirs]
        # Bins of 60 degrees that overlap by half; a descriptor votes for an image once a bin.
        votes = ((pairs * 12 + np.stack([turn % 12, (turn + 1) % 12])) * len(owner) + mine).ravel()
        votes, first = np.unique(votes, return_index=True)
        bins, starts, counts = np.unique(votes // len(owner), return_index=True, return_counts=True)
        if not len(bins):
            return []
        scores = np.add.reduceat(np.tile(weights, 2)[first], starts)
        agreed = counts >= VOTES
        best: dict[int, float] = {}
        for pair, score in zip((bins[agreed] // 12).tolist(), scores[agreed].tolist(), strict=True):
            best[pair] = max(score, best.get(pair, 0.0))
        return [(*divmod(pair, self._count), score) for pair, score in best.items()]

    def _votes(self, descriptors: NDArray[np.uint8]) -> tuple[Rows, Rows, Floats]:
        """(own row, index row, weight) of the most similar descriptors of each; the weight is how far one stands out of them."""
        words = self._words(descriptors)
        order = np.argsort(words, kind="stable")
        bounds = np.searchsorted(words[order], np.arange(len(self._centres) + 1))
        hits = [
            self._hits(descriptors, order[start : min(start + _BLOCK, bounds[w + 1])], w)
            for w in range(len(self._centres))
            for start in range(bounds[w], bounds[w + 1], _BLOCK)
            if self._starts[w] < self._starts[w + 1]
        ]
        mine, theirs, products = (np.concatenate(part) for part in zip(*hits, strict=True))
        order = np.lexsort((-products, mine))
        mine, theirs, products = mine[order], theirs[order], products[order]
        starts = np.flatnonzero(np.diff(mine, prepend=-1))
        counts = np.diff(starts, append=len(mine))
        rank = np.arange(len(mine)) - np.repeat(starts, counts)
        floor = np.where(counts >= _PER_FEATURE, products[np.minimum(starts + _PER_FEATURE, len(mine)) - 1], SIMILAR)
        kept = rank < _PER_FEATURE
        return mine[kept], theirs[kept], (products - np.repeat(floor, counts) + 0.01)[kept]

    def _hits(self, descriptors: NDArray[np.uint8], mine: Rows, word: int) -> tuple[Rows, Rows, Floats]:
        """(own row, index row, product) of descriptors of one word that are alike."""
        start, stop = self._starts[word], self._starts[word + 1]
        products = units(descriptors[mine]) @ units(self._descriptors[start:stop]).T
        rows, columns = np.nonzero(products >= SIMILAR)
        return mine[rows], start + columns, products[rows, columns]


def _centres(descriptors: NDArray[np.uint8], count: int) -> Floats:
    """[count, 128] of unit length, by k-means on evenly spaced rows."""
    rows = descriptors[np.linspace(0, len(descriptors) - 1, min(len(descriptors), 40 * count)).astype(np.int64)]
    sample = units(rows)
    centres = sample[np.linspace(0, len(sample) - 1, count).astype(np.int64)]
    for _ in range(6):
        nearest = np.concatenate([(sample[n : n + 4096] @ centres.T).argmax(axis=1) for n in range(0, len(sample), 4096)])
        order = np.argsort(nearest, kind="stable")
        filled, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centres[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return centres
