"""Which images of two large sets share local features in one arrangement: a search by an index of visual words.

Every descriptor of the second set belongs to a word, the nearest of some thousand centres (Sivic and Zisserman, 2003), found
through cells of centres. A descriptor of the first is compared with those of its word alone, and votes for the images of the
most similar ones. The eight images with the best votes, turned by about the same angle, are matched descriptor by descriptor;
each match says how the one image would lie on the other (Lowe 2004, 7.3), and the map that most matches agree on is the pair's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2i2.evaluation.alignment import Map
from m2i2.evaluation.local_features import Features, Floats, units

SIMILAR = 0.90
"""Least product of two descriptors (of unit length) that vote for their images."""
VOTES, INLIERS = 4, 7
"""Least agreeing votes of a pair that is matched, and least agreeing matches of a pair that is reported."""
_PER_WORD, _PER_FEATURE, _PER_IMAGE, _BLOCK = 2048, 16, 8, 1024
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


class FeatureSearch:
    """A search for images that share features with those of a set."""

    def __init__(self, images: Sequence[Features]) -> None:
        self._images = images
        self._index = _Index(images) if sum(map(len, images)) else None

    def sightings(self, images: Sequence[Features]) -> Iterator[Sighting]:
        """Pairs that share features in one arrangement, of each image the three that agree most; mirrored or not."""
        if self._index is None or not sum(map(len, images)):
            return
        sides = images, [features.mirrored() for features in images]
        proposed: dict[int, list[tuple[float, int, int]]] = {}
        for place, other, score in self._index.alike([*sides[0], *sides[1]]):
            side, number = divmod(place, len(images))
            proposed.setdefault(number, []).append((score, other, side))
        for number, ranked in sorted(proposed.items()):
            best: dict[int, Sighting] = {}
            described = [units(side[number].descriptors) for side in sides]
            for _, other, side in sorted(ranked, reverse=True)[:_PER_IMAGE]:
                one = sides[side][number]
                found = arrangement(one.places, described[side], self._images[other])
                if found and (other not in best or best[other].inliers < found[1]):
                    map_ = _unmirrored(found[0], one.width) if side else found[0]
                    best[other] = Sighting(number, other, map_, found[1])
            yield from sorted(best.values(), key=lambda seen: -seen.inliers)[:_MOST_REPORTED]


def _unmirrored(map_: Map, width: float) -> Map:
    """The map of the image itself, from that of its mirror image."""
    return np.column_stack([-map_[:, 0], map_[:, 1], map_[:, 2] + width * map_[:, 0]])


def arrangement(places: Floats, described: Floats, other: Features) -> tuple[Map, int] | None:
    """The affine map that most matches agree on, and how many do; None for fewer than `INLIERS`.

    From places [n, 4] with descriptors [n, 128] of unit length to the other image.
    """
    products = described @ units(other.descriptors).T
    partner, back = products.argmax(axis=1), products.argmax(axis=0)
    mutual = np.flatnonzero((back[partner] == np.arange(len(places))) & (products.max(axis=1) >= 0.75))
    if len(mutual) < INLIERS:
        return None
    here, there = places[mutual].astype(np.float64), other.places[partner[mutual]].astype(np.float64)
    zoom, turn = np.log(there[:, 2] / here[:, 2]), there[:, 3] - here[:, 3]
    # [hypothesis, match]: how far each hypothesis puts the other matches from where they are, relative to its own; x + iy
    start, end = (rows[:, 0] + 1j * rows[:, 1] for rows in (here, there))
    misses = np.abs(np.exp(zoom + 1j * turn)[:, None] * (start[None] - start[:, None]) - (end[None] - end[:, None]))
    tolerance = _TOLERANCE * np.maximum(1, np.exp(zoom))
    turned = np.abs((turn[None] - turn[:, None] + np.pi) % (2 * np.pi) - np.pi)
    agree = (misses <= tolerance[:, None]) & (turned <= _TURN) & (np.abs(zoom[None] - zoom[:, None]) <= _ZOOM)
    best = int(agree.sum(axis=1).argmax())
    inliers = agree[best]
    if inliers.sum() < INLIERS:
        return None
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
        self._words = _Words(descriptors, max(1, len(descriptors) // _PER_WORD))
        words = self._words.of(descriptors)
        order = np.argsort(words, kind="stable")
        self._descriptors, self._images, self._places = descriptors[order], self._images[order], self._places[order]
        self._starts = np.searchsorted(words[order], np.arange(self._words.count + 1))
        self._count = len(images)

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
        words = self._words.of(descriptors)
        order = np.argsort(words, kind="stable")
        bounds = np.searchsorted(words[order], np.arange(self._words.count + 1))
        hits = [part for w in range(self._words.count) for part in self._hits(descriptors, order[bounds[w] : bounds[w + 1]], w)]
        if not hits:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        mine, theirs, weights = (np.concatenate(part) for part in zip(*hits, strict=True))
        return mine, theirs, weights

    def _hits(self, descriptors: NDArray[np.uint8], mine: Rows, word: int) -> Iterator[tuple[Rows, Rows, Floats]]:
        """(own row, index row, weight) of descriptors of one word that are alike."""
        start, stop = self._starts[word], self._starts[word + 1]
        if start == stop or not len(mine):
            return
        theirs = units(self._descriptors[start:stop]).T
        for n in range(0, len(mine), _BLOCK):
            block = mine[n : n + _BLOCK]
            products = units(descriptors[block]) @ theirs
            rows, columns = np.divmod(np.flatnonzero(products >= SIMILAR), stop - start)
            values = products[rows, columns]
            order = np.lexsort((-values, rows))
            rows, columns, values = rows[order], columns[order], values[order]
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            counts = np.diff(starts, append=len(rows))
            rank = np.arange(len(rows)) - np.repeat(starts, counts)
            floor = np.full(len(starts), SIMILAR, dtype=np.float32)
            many = counts >= _PER_FEATURE
            floor[many] = values[starts[many] + _PER_FEATURE - 1]
            kept = rank < _PER_FEATURE
            yield block[rows[kept]], start + columns[kept], (values - np.repeat(floor, counts) + 0.01)[kept]


class _Words:
    """Centres of descriptors in two levels: cells, and words in each cell."""

    def __init__(self, descriptors: NDArray[np.uint8], count: int) -> None:
        rows = np.linspace(0, len(descriptors) - 1, min(len(descriptors), 40 * count)).astype(np.int64)
        sample = units(descriptors[rows])
        self._cells = _centres(sample, max(1, round(count**0.5)))
        cell = _nearest(sample, self._cells)
        share = np.maximum(1, np.rint(np.bincount(cell, minlength=len(self._cells)) * count / len(sample))).astype(np.int64)
        self._centres = [
            _centres(sample[cell == n], k) if (cell == n).any() else self._cells[n : n + 1] for n, k in enumerate(share)
        ]
        self._first = np.concatenate([[0], np.cumsum([len(centres) for centres in self._centres])])
        self.count = int(self._first[-1])

    def of(self, descriptors: NDArray[np.uint8]) -> Rows:
        """The word of each descriptor: the nearest centre of the three nearest cells."""
        return np.concatenate([self._of(units(descriptors[n : n + 16384])) for n in range(0, len(descriptors), 16384)])

    def _of(self, vectors: Floats) -> Rows:
        most = min(3, len(self._cells))
        near = np.argpartition(-(vectors @ self._cells.T), most - 1, axis=1)[:, :most]
        best, word = np.full(len(vectors), -np.inf, dtype=np.float32), np.zeros(len(vectors), dtype=np.int64)
        for cell, centres in enumerate(self._centres):
            rows = np.flatnonzero((near == cell).any(axis=1))
            products = vectors[rows] @ centres.T
            closest = products.argmax(axis=1)
            values = products[np.arange(len(rows)), closest]
            better = values > best[rows]
            best[rows[better]], word[rows[better]] = values[better], self._first[cell] + closest[better]
        return word


def _nearest(vectors: Floats, centres: Floats) -> Rows:
    return np.concatenate([(vectors[n : n + 4096] @ centres.T).argmax(axis=1) for n in range(0, len(vectors), 4096)])


def _centres(sample: Floats, count: int) -> Floats:
    """[count or fewer, 128] of unit length, by k-means on a sample of vectors."""
    count = min(count, len(sample))
    centres = sample[np.linspace(0, len(sample) - 1, count).astype(np.int64)]
    for _ in range(6):
        nearest = _nearest(sample, centres)
        order = np.argsort(nearest, kind="stable")
        filled, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centres[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return centres
