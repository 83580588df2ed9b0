"""The same image in two sets: byte for byte, pixel for pixel, or after rescaling, re-encoding and a slight crop.

Radiographs look alike, so likeness is measured on detail, not on layout: thumbnails less their own blur. Every image of one
set is compared with every one of the other at 16 slight crops (`candidates`); what is alike there is aligned edge by edge and
compared again in more detail (`aligned_correlation`). Turned, mirrored and strongly cropped images are not found.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from m2i2.data.images.decoding import decode
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.errors import M2I2Error

Kept = tuple[float, float, float, float]
"""What a crop removes, as shares of width and height: left, top, right, bottom."""

CANDIDATE, SAME = 0.85, 0.92
"""Least correlation of a candidate (24 pixels) and of a near-duplicate (64 pixels, aligned); docs/evaluation.md has what
they find and what they mistake."""
_THUMBNAIL, _COARSE, _FINE = 128, 24, 64
_CROPS: tuple[Kept, ...] = tuple((a, b, c, d) for a, b, c, d in product((0.0, 0.03), repeat=4))
_DEEPEST_CROP = 0.12
_HOPELESS = 0.6
"""Below this at the best of the 16 crops, alignment does not start: planted duplicates begin above 0.7."""


@dataclass(frozen=True)
class AuditedImage:
    """An image of a set, with what it is recognised by."""

    key: str
    stored_sha256: str
    pixels_sha256: str
    """Of its size and its decoded RGB values."""
    thumbnail: Image.Image
    """Grey, at most 128 pixels wide and high, its shape kept."""


@dataclass(frozen=True)
class AuditedSet:
    """The distinct images of one split of a shard folder."""

    folder: Path
    split: str
    source: str
    kind: str
    images: tuple[AuditedImage, ...]

    @property
    def name(self) -> str:
        """FOLDER:SPLIT, as on the command line."""
        return f"{self.folder}:{self.split}"


@dataclass(frozen=True)
class Pair:
    """The same image in two sets."""

    first: int
    second: int
    kind: str
    """bytes, pixels, or near (rescaled, re-encoded, slightly cropped)."""
    correlation: float


def read_set(folder: Path, split: str, progress: Callable[[int], None] = lambda done: None) -> AuditedSet:
    """All images of a split, once each."""
    index = read_index(folder)
    shards = ShardSplit.open(folder, split, index["kind"])
    _, items = np.unique(shards.items[["shard", "image_offset"]], return_index=True)
    images = []
    for number, item in enumerate(sorted(items.tolist())):
        sample = shards.read(item)
        image = decode(sample.image, sample.key)
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        grey = image.convert("L")
        grey.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        images.append(AuditedImage(sample.key, sample.image_sha256, pixels, grey))
        progress(number + 1)
    return AuditedSet(folder, split, str(index["source"]), str(index["kind"]), tuple(images))


def matches(first: AuditedSet, second: AuditedSet) -> list[Pair]:
    """Every pair of the same image in both sets; an image may have several partners."""
    found = []
    exact: set[tuple[int, int]] = set()
    for kind in ("stored_sha256", "pixels_sha256"):
        places: dict[str, list[int]] = {}
        for number, image in enumerate(second.images):
            places.setdefault(getattr(image, kind), []).append(number)
        for number, image in enumerate(first.images):
            for other in places.get(getattr(image, kind), []):
                if (number, other) not in exact:
                    exact.add((number, other))
                    found.append(Pair(number, other, "bytes" if kind == "stored_sha256" else "pixels", 1.0))
    for number, other in candidates([i.thumbnail for i in first.images], [i.thumbnail for i in second.images]):
        if (number, other) not in exact:
            correlation = aligned_correlation(first.images[number].thumbnail, second.images[other].thumbnail)
            if correlation >= SAME:
                found.append(Pair(number, other, "near", round(correlation, 4)))
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def candidates(first: Sequence[Image.Image], second: Sequence[Image.Image], chunk: int = 256) -> Iterator[tuple[int, int]]:
    """Pairs whose details correlate by at least `CANDIDATE` when one of the two is cropped in one of 16 slight ways."""
    if not first or not second:
        return
    found: set[tuple[int, int]] = set()
    for cropped, whole, swapped in ((first, second, False), (second, first, True)):
        against = np.stack([_detail(image, _COARSE) for image in whole]).T
        for start in range(0, len(cropped), chunk):
            best = np.full((min(chunk, len(cropped) - start), len(whole)), -1.0, dtype=np.float32)
            for crop in _CROPS:
                details = np.stack([_detail(image, _COARSE, crop) for image in cropped[start : start + chunk]])
                np.maximum(best, details @ against, out=best)
            for number, other in np.argwhere(best >= CANDIDATE).tolist():
                found.add((other, start + number) if swapped else (start + number, other))
    yield from sorted(found)


def aligned_correlation(one: Image.Image, other: Image.Image) -> float:
    """The highest correlation of the details of two images when either is cropped so that it fits the other best."""
    return max(_climb(one, other), _climb(other, one))


def _climb(cropped: Image.Image, whole: Image.Image) -> float:
    """Hill climbing over the four edges of a crop, in steps from 3 % down to a quarter of a percent."""
    target = _detail(whole, _FINE)

    def score(crop: Kept) -> float:
        return float(_detail(cropped, _FINE, crop) @ target)

    crop = max(_CROPS, key=score)
    best = score(crop)
    if best < _HOPELESS:
        return best
    for step in (0.03, 0.01, 0.005, 0.0025):
        moved = True
        while moved:
            moved = False
            for edge, way in product(range(4), (step, -step)):
                values = list(crop)
                values[edge] = min(_DEEPEST_CROP, max(0.0, values[edge] + way))
                trial: Kept = (values[0], values[1], values[2], values[3])
                if trial != crop and (value := score(trial)) > best + 1e-6:
                    crop, best, moved = trial, value, True
    return best


def _detail(image: Image.Image, side: int, crop: Kept = (0.0, 0.0, 0.0, 0.0)) -> NDArray[np.float32]:
    """[side * side] of unit length: the cropped image at side x side pixels, less its blur; zeros for a blank one."""
    width, height = image.size
    box = (crop[0] * width, crop[1] * height, (1 - crop[2]) * width, (1 - crop[3]) * height)
    small = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
    values = np.asarray(small, dtype=np.float32) - np.asarray(small.filter(ImageFilter.GaussianBlur(side / 12)), dtype=np.float32)
    values = values.ravel() - values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > 1e-3 else np.zeros_like(values)


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
