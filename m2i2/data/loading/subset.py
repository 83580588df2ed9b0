"""Some items of a split, read as a split of its own."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from m2i2.data.records import Kind, Question
from m2i2.data.shards.split import ImageQuestion, Sample, ShardSplit


class SelectedSplit:
    """The given items of ``whole``, in its order and renumbered; what they are decides the fingerprint."""

    def __init__(self, whole: ShardSplit, items: Sequence[int], reason: str) -> None:
        self.whole = whole
        self.storage, self.shards, self.items = whole.storage, whole.shards, whole.items
        self.kind: Kind = whole.kind
        self.name = f"{whole.name} ({reason})"
        self.chosen: NDArray[np.int64] = np.array(sorted(items), dtype=np.int64)
        digest = hashlib.sha256(self.chosen.tobytes()).hexdigest()[:16]
        self.fingerprint = f"{whole.fingerprint}-{digest}"
        ends = np.cumsum(whole.shard_items)
        shard_of = np.searchsorted(ends, self.chosen, side="right")
        self.shard_items: NDArray[np.int64] = np.bincount(shard_of, minlength=len(ends)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, item: int) -> Sample:
        """The item with number ``item`` among the chosen ones."""
        return self.whole.read(int(self.chosen[item]))

    def question(self, item: int) -> ImageQuestion:
        """One question of a vqa split, without its image."""
        return replace(self.whole.question(int(self.chosen[item])), item=item)

    def questions(self) -> Iterator[ImageQuestion]:
        """The questions of a vqa split, without its images."""
        return (self.question(number) for number in range(len(self)))

    def texts(self) -> Iterator[str]:
        """Question and answer of every item."""
        for asked in self.questions():
            yield asked.question.question
            yield asked.question.answer


def spread(total: int, most: int) -> list[int]:
    """At most ``most`` numbers below ``total``, evenly spaced; all of them where there are no more."""
    return sorted(set(np.linspace(0, total - 1, min(total, most)).round().astype(int).tolist()))


def questions_of(split: ShardSplit | SelectedSplit) -> list[Question]:
    """The questions of a split, without reading its images."""
    return [asked.question for asked in split.questions()]
