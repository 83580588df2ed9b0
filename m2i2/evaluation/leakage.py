"""The same image in two sets: byte for byte, pixel for pixel, or altered.

Altered images are sought in two ways. `candidates` correlates the details of whole images, in eight orientations and inverted
or not; `feature_search` looks for parts. What either proposes is laid over the other image and compared again (`alignment`).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from m2i2.data.images.decoding import decode
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.errors import M2I2Error
from m2i2.evaluation.alignment import THUMBNAIL, Alignment, align, oriented_map
from m2i2.evaluation.feature_search import sightings
from m2i2.evaluation.local_features import Features, Floats, blurred, features_of

CANDIDATE, SAME = 0.75, 0.92
"""Least correlation of whole images that are laid over each other (24 pixels), and of the same image (64 pixels, aligned);
docs/evaluation.md has what they find and what they mistake."""
SAME_BY_FEATURES = ((7, 0.90), (15, 0.875), (30, 0.78), (45, 0.50))
"""(agreeing features, least correlation) of the same image found by its features."""
_UNDECIDED = 0.6
"""A pair that correlates at least so much, and too little to be the same, is compared again with equalised grey values."""
_SIDE, _BLOCK = 24, 2048
_WHOLE = 0.8
"""What is shared of both images, at least, for a pair to be called near and not part."""
_TURNS = tuple(
    np.diag([x, y]) @ (np.eye(2)[::-1] if transposed else np.eye(2))
    for transposed, x, y in product((False, True), (1, -1), (1, -1))
)
"""[2, 2] each: the eight ways to lay a sheet on a rectangle, the upright one first."""


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
    read = partial(_read, shards)
    if workers > 1 and len(items) > 64:
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            for image in pool.map(read, items, chunksize=16):
                images.append(image)
                progress(len(images))
    else:
        for image in map(read, items):
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
    grey = image.convert("L")
    features = features_of(grey)
    grey.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return AuditedImage(key, stored_sha256, pixels, grey, features)


def matches(first: Sequence[AuditedImage], second: Sequence[AuditedImage]) -> list[Pair]:
    """Every pair of the same image; an image may have several partners."""
    found = {(pair.first, pair.second): pair for pair in _exact(first, second)}
    exact = set(found)

    def consider(number: int, other: int, start: NDArray[np.float64], least: float) -> None:
        if (number, other) in exact:
            return
        alignment = _laid_over(first[number].thumbnail, second[other].thumbnail, start, least)
        known = found.get((number, other))
        if abs(alignment.correlation) >= max(least, known.correlation if known else 0.0):
            found[number, other] = _pair(number, other, alignment)

    for number, other, turn in candidates([i.thumbnail for i in first], [i.thumbnail for i in second]):
        consider(number, other, oriented_map(first[number].thumbnail, second[other].thumbnail, turn), SAME)
    for seen in sightings([i.features for i in first], [i.features for i in second]):
        least = min(correlation for inliers, correlation in SAME_BY_FEATURES if seen.inliers >= inliers)
        consider(seen.first, seen.second, seen.map, least)
    return [found[pair] for pair in sorted(found)]


def _laid_over(first: Image.Image, second: Image.Image, start: NDArray[np.float64], least: float) -> Alignment:
    """The alignment of two thumbnails; where it leaves open whether they are the same, with equalised grey values if that is more.

    Equalised, two copies are alike whatever curve (window, gamma, equalisation) one of them went through.
    """
    found = align(first, second, start)
    if not _UNDECIDED <= abs(found.correlation) < least:
        return found
    equalised = align(ImageOps.equalize(first), ImageOps.equalize(second), start)
    return max(found, equalised, key=lambda alignment: abs(alignment.correlation))


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


def candidates(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """(first, second, turn): of each first image the second one whose details correlate most, positively or negatively.

    Those below `CANDIDATE` are left out.
    """
    if not first or not second:
        return
    ours, theirs = _details(first), _details(second).reshape(len(second), -1).T.copy()
    for start in range(0, len(ours), _BLOCK):
        block = ours[start : start + _BLOCK]
        best = np.full(len(block), CANDIDATE, dtype=np.float32)
        partner, way = np.full(len(block), -1), np.zeros(len(block), dtype=np.int64)
        for n, turn in enumerate(_TURNS):
            turned = (block.swapaxes(1, 2) if turn[0, 0] == 0 else block)[:, :: int(turn[1].sum()), :: int(turn[0].sum())]
            flat = turned.reshape(len(block), -1)
            for column in range(0, len(second), _BLOCK):
                products = np.abs(flat @ theirs[:, column : column + _BLOCK])
                closest = products.argmax(axis=1)
                likeness = products[np.arange(len(block)), closest]
                better = likeness > best
                best[better], partner[better], way[better] = likeness[better], column + closest[better], n
        for number in np.flatnonzero(partner >= 0).tolist():
            yield start + number, int(partner[number]), _TURNS[way[number]]


def _details(images: Sequence[Image.Image]) -> Floats:
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
