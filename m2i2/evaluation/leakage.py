"""The same image in two sets: byte for byte, pixel for pixel, or altered.

Altered images are sought in two ways. `whole_images` correlates the details of whole images, in eight orientations and inverted
or not; `feature_search` looks for parts. What either proposes is laid over the other image and compared again (`alignment`).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from m2i2.data.images.decoding import decode
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.errors import M2I2Error
from m2i2.evaluation.alignment import CAREFUL, QUICK, THUMBNAIL, Alignment, Map, align, oriented_map
from m2i2.evaluation.borders import without_borders
from m2i2.evaluation.feature_search import FeatureSearch
from m2i2.evaluation.forked import each
from m2i2.evaluation.local_features import Features, features_of
from m2i2.evaluation.whole_images import details, partners

SAME = 0.92
"""Least correlation of the same image (64 pixels, aligned); docs/audit.md says what it finds and misses."""
SAME_BY_FEATURES = ((7, 0.90), (15, 0.875), (30, 0.78), (45, 0.50))
"""(agreeing features, least correlation) of the same image found by its features."""
_UNDECIDED, _CLOSE = 0.7, 0.1
"""A pair that correlates at least so much, and too little to be the same, is compared again with equalised grey values; one that
lacks less than `_CLOSE` is aligned on all pixels."""
_WHOLE = 0.8
"""What is shared of both images, at least, for a pair to be called near and not part."""
_PORTIONS, _LEAST_PORTION, _LARGEST_PORTION = 16, 128, 2000
"""Into how many portions the first images are divided, and how many images one has. Not by the number of processes: all give
the same result to the last bit."""


@dataclass(frozen=True)
class AuditedImage:
    """An image of a set, with what it is recognised by."""

    key: str
    stored_sha256: str
    pixels_sha256: str
    """Of its size and its decoded RGB values."""
    thumbnail: Image.Image
    """Grey, at most 128 pixels wide and high, its shape kept."""
    features: Features


@dataclass(frozen=True)
class AuditedSet:
    """The distinct images of one split of a shard folder."""

    folder: Path
    split: str
    source: str
    kind: str
    fingerprint: str
    encoding: dict[str, object]
    """How its images were stored: `make_shards.py --exclude` needs the same."""
    images: tuple[AuditedImage, ...]

    @property
    def name(self) -> str:
        """FOLDER:SPLIT, as on the command line."""
        return f"{self.folder}:{self.split}"

    @property
    def label(self) -> str:
        """The folder's own name and the split, for a picture's caption."""
        return f"{self.folder.resolve().name}:{self.split}"


@dataclass(frozen=True)
class Pair:
    """The same image in two sets."""

    first: int
    second: int
    kind: str
    """bytes, pixels, near (nearly all of both images is the same) or part."""
    correlation: float
    change: str = ""
    """How the first image was turned: "mirrored", "turned by 90 degrees", "inverted", or several of these."""


def read_set(folder: Path, split: str, workers: int = 1, progress: Callable[[int], None] = lambda done: None) -> AuditedSet:
    """All images of a split, once each."""
    index = read_index(folder)
    shards = ShardSplit.open(folder, split, index["kind"])
    _, first = np.unique(shards.items[["shard", "image_offset"]], return_index=True)
    items = sorted(first.tolist())
    images: list[AuditedImage] = []
    for image in each(partial(_read, shards), items, workers, 16):
        images.append(image)
        progress(len(images))
    kept = dict(index.get("encoding", {}))
    return AuditedSet(folder, split, str(index["source"]), str(index["kind"]), str(index["fingerprint"]), kept, tuple(images))


def _read(shards: ShardSplit, item: int) -> AuditedImage:
    sample = shards.read(item)
    return audited(sample.key, sample.image_sha256, decode(sample.image, sample.key))


def audited(key: str, stored_sha256: str, image: Image.Image) -> AuditedImage:
    """What a decoded image (RGB) is recognised by."""
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    grey = without_borders(image.convert("L"))
    features = features_of(grey)
    grey.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return AuditedImage(key, stored_sha256, pixels, grey, features)


def matches(first: Sequence[AuditedImage], second: Sequence[AuditedImage], workers: int = 1) -> list[Pair]:
    """Every pair of the same image; an image may have several partners."""
    found = {(pair.first, pair.second): pair for pair in _exact(first, second)}
    if first and second:
        comparison = _Comparison(first, second, frozenset(found))
        size = min(_LARGEST_PORTION, max(_LEAST_PORTION, -(-len(first) // _PORTIONS)))
        portions = [range(start, min(start + size, len(first))) for start in range(0, len(first), size)]
        for pairs in each(comparison.altered, portions, workers):
            found |= {(pair.first, pair.second): pair for pair in pairs}
    return [found[pair] for pair in sorted(found)]


class _Comparison:
    """The search for altered images of one set in another."""

    def __init__(self, first: Sequence[AuditedImage], second: Sequence[AuditedImage], known: frozenset[tuple[int, int]]) -> None:
        self._first, self._second, self._known = first, second, known
        self._details = details([image.thumbnail for image in second])
        self._search = FeatureSearch([image.features for image in second])

    def altered(self, portion: range) -> list[Pair]:
        """The pairs of some of the first images, but for those known already."""
        found: dict[tuple[int, int], Pair] = {}
        for number, other, start, least in self._proposed(portion):
            if (number, other) not in self._known:
                alignment = _laid_over(self._first[number].thumbnail, self._second[other].thumbnail, start, least)
                before = found.get((number, other))
                if abs(alignment.correlation) >= max(least, before.correlation if before else 0.0):
                    found[number, other] = _pair(number, other, alignment)
        return list(found.values())

    def _proposed(self, portion: range) -> Iterator[tuple[int, int, Map, float]]:
        """(first, second, where the first image would lie on the second, least correlation) of pairs that may be the same."""
        images = [self._first[number] for number in portion]
        for place, other, turn in partners(details([image.thumbnail for image in images]), self._details):
            start = oriented_map(images[place].thumbnail, self._second[other].thumbnail, turn)
            yield portion[place], other, start, SAME
        for seen in self._search.sightings([image.features for image in images]):
            least = min(correlation for inliers, correlation in SAME_BY_FEATURES if seen.inliers >= inliers)
            yield portion[seen.first], seen.second, seen.map, least


def _laid_over(first: Image.Image, second: Image.Image, start: Map, least: float) -> Alignment:
    """The alignment of two thumbnails; where it leaves open whether they are the same, with equalised grey values if that is more.

    Equalised, two copies are alike whatever curve (window, gamma, equalisation) one of them went through.
    """
    found = align(first, second, start)
    if least - _CLOSE <= abs(found.correlation) < least:
        found = max(found, align(first, second, found.map, CAREFUL), key=_closeness)
    if _UNDECIDED <= abs(found.correlation) < least:
        equalised = align(ImageOps.equalize(first), ImageOps.equalize(second), found.map, QUICK[1:])
        found = max(found, equalised, key=_closeness)
    return found


def _closeness(alignment: Alignment) -> float:
    return abs(alignment.correlation)


def _exact(first: Sequence[AuditedImage], second: Sequence[AuditedImage]) -> Iterator[Pair]:
    """Pairs of the same pixels, then those of the same bytes."""
    for kind, attribute in (("pixels", "pixels_sha256"), ("bytes", "stored_sha256")):
        places: dict[str, list[int]] = {}
        for number, image in enumerate(second):
            places.setdefault(getattr(image, attribute), []).append(number)
        for number, image in enumerate(first):
            for other in places.get(getattr(image, attribute), []):
                yield Pair(number, other, kind, 1.0)


def _pair(number: int, other: int, alignment: Alignment) -> Pair:
    linear, changes = alignment.map[:, :2], []
    if np.linalg.det(linear) < 0:
        linear = linear @ np.diag([-1, 1])
        changes.append("mirrored")
    angle = math.degrees(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    if abs(angle) > 1.5:
        changes.append(f"turned by {angle:.0f} degrees")
    if alignment.correlation < 0:
        changes.append("inverted")
    kind = "near" if min(alignment.shares) >= _WHOLE else "part"
    return Pair(number, other, kind, round(abs(alignment.correlation), 4), ", ".join(changes))


def parse_sets(words: Sequence[str]) -> list[tuple[Path, str]]:
    """(folder, split) of words FOLDER or FOLDER:SPLIT; a folder alone stands for all of its splits."""
    found = []
    for word in words:
        folder, colon, split = word.rpartition(":")
        if colon and Path(folder).is_dir():
            if split not in (names := read_index(Path(folder))["splits"]):
                raise M2I2Error(f"{folder} has no split {split!r}; it has {', '.join(names)}.")
            found.append((Path(folder), split))
        else:
            found += [(Path(word), name) for name in read_index(Path(word))["splits"]]
    if len(set(found)) < 2:
        raise M2I2Error("An audit compares at least two sets; name several folders, or one with several splits.")
    return list(dict.fromkeys(found))


def in_pairs(sets: Sequence[AuditedSet]) -> Iterator[tuple[AuditedSet, AuditedSet]]:
    """Every two different sets; the one that must stay whole (`_worth`) second."""
    for one, other in combinations(sets, 2):
        yield (one, other) if _worth(one) <= _worth(other) else (other, one)


def _worth(audited: AuditedSet) -> int:
    """Which of two sets keeps an image that both hold: questions before captions, test before val before train."""
    return 10 * (audited.kind == "vqa") * (audited.split != "train") + {"test": 2, "val": 1}.get(audited.split, 0)
