"""From a stored sample to a pair of image and text, by transforms that know nothing of its random stream."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from m2i2.data.images.decoding import decode
from m2i2.data.images.transforms import Augmentation, EvaluationTransform
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.items import Row, unreadable_of
from m2i2.data.shards.split import Sample

Pair = tuple[Any, Any]
"""(image, text), each as it was transformed."""


class Collated(NamedTuple):
    """A batch, and what could not be read of it."""

    batch: Any
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How a sample becomes a pair, and pairs a batch."""

    transform: Callable[[Any], Any] | Augmentation | EvaluationTransform | None
    """Of the image. One of this package's own decodes no more pixels than it needs."""
    text: Callable[[Sample], Any] | None
    """None: a caption, drawn where there are several; of a question, (question, answer)."""
    collate_pairs: Callable[[list[Pair]], Any] | None
    decode: bool
    """Whether the transform is given a PIL image (RGB), or the bytes as they are stored."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Row:
        """{"pair": (image, text)}; M2I2Error, naming the sample, for an image that cannot be decoded."""
        if self.text:
            text = self.text(sample)
        elif sample.question:
            text = sample.question.question, sample.question.answer
        else:
            text = sample.captions[int(rng.integers(len(sample.captions)))]
        return {"pair": (self._image(sample, rng), text)}

    def _image(self, sample: Sample, rng: np.random.Generator) -> Any:
        name = f"{sample.key} of {sample.shard}"
        if isinstance(self.transform, Augmentation):
            return self.transform(sample.image, rng, name)
        if isinstance(self.transform, EvaluationTransform):
            return self.transform(sample.image, name)
        image = decode(sample.image, name) if self.decode else sample.image
        if self.transform is None:
            return image
        with seeded(int(rng.integers(1 << 63))):
            return self.transform(image)

    def collate(self, rows: list[Row]) -> Collated:
        """The pairs of rows as a list, or what ``collate_pairs`` makes of them."""
        pairs = [row["pair"] for row in rows]
        return Collated(self.collate_pairs(pairs) if self.collate_pairs else pairs, unreadable_of(rows))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block in which the global random numbers of torch (CPU), numpy and Python begin with ``seed``; they go on as before it."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  # what transforms draw from
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


class PairDataset(Dataset[Pair]):
    """The pairs of a corpus by number, for a plain DataLoader: random as its worker is, not as the sample's own stream."""

    def __init__(self, corpus: Corpus, pairs: Pairs) -> None:
        self.corpus, self.pairs = corpus, pairs

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, item: int) -> Pair:
        number = item + len(self) if item < 0 else item
        if not 0 <= number < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        pair: Pair = self.pairs(self.corpus.read(number), np.random.default_rng(int(torch.randint(1 << 62, ()))))["pair"]
        return pair
