"""Other images in a question's place of its own: a blank one, noise, and that of another question of the same kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2i2.data.images.transforms import MEAN, EvaluationTransform
from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.records import Question
from m2i2.data.shards.split import ImageQuestion, Sample, ShardSplit

Split = ShardSplit | SelectedSplit
SEED = 0
"""Of the pairing of images, so that a certificate is the same every time."""


@dataclass(frozen=True)
class Sight:
    """Which questions are asked, in this order, and what the model sees with each."""

    items: Sequence[int]
    name: Callable[[int, Sample], str]
    """Of the picture that goes with an item and its sample; equal pictures share it, and are encoded once in a batch."""
    pixels: Callable[[int, Sample], Tensor]
    """[3, H, H] uint8."""


def own(items: Sequence[int], size: int) -> Sight:
    """The questions' own images at ``size`` pixels a side."""
    transform = EvaluationTransform(size=size)
    return Sight(items, lambda item, sample: sample.image_sha256, lambda item, sample: transform(sample.image, sample.key))


def blank(items: Sequence[int], size: int) -> Sight:
    """One even grey: the mean of the normalisation, so that every normalised pixel is near 0."""
    grey = torch.tensor([round(255 * mean) for mean in MEAN], dtype=torch.uint8)[:, None, None].expand(3, size, size)
    return Sight(items, lambda item, sample: "blank", lambda item, sample: grey)


def noise(items: Sequence[int], size: int) -> Sight:
    """Pixels drawn evenly from 0 to 255, each channel by itself; for an image always the same."""

    def drawn(item: int, sample: Sample) -> Tensor:
        rng = np.random.default_rng(int(sample.image_sha256[:16], 16))
        return torch.from_numpy(rng.integers(256, size=(3, size, size), dtype=np.uint8))

    return Sight(items, lambda item, sample: sample.image_sha256, drawn)


def shuffled(items: Sequence[int], size: int, split: Split) -> Sight | None:
    """Each question with the image of another one of its kind; None where all questions are about one image.

    The questions are ordered by the image that they get, so that it is encoded once for those that share it.
    """
    asked = {item: split.question(item) for item in items}
    donor = donors(asked)
    if donor is None:
        return None
    transform = EvaluationTransform(size=size)

    def pixels(item: int, sample: Sample) -> Tensor:
        other = split.read(donor[item])
        return transform(other.image, other.key)

    order = sorted(items, key=lambda item: (donor[item], item))
    return Sight(order, lambda item, sample: asked[donor[item]].image_sha256, pixels)


def donors(asked: dict[int, ImageQuestion]) -> dict[int, int] | None:
    """For each item an item about another image: of those both closed or both open and of one question type, where two of their
    images differ; else of those both closed or both open; else of all. None where there is one image only.
    """
    found: dict[int, int] = {}
    for kind in (_kind_and_type, _kind, _any):
        groups: dict[tuple[object, ...], dict[str, list[int]]] = {}
        for item, question in asked.items():
            groups.setdefault(kind(question.question), {}).setdefault(question.image_sha256, []).append(item)
        for images in groups.values():
            if len(images) > 1:
                order = [list(images.values())[i] for i in np.random.default_rng(SEED).permutation(len(images))]
                for here, there in zip(order, [*order[1:], order[0]], strict=True):
                    for item in here:
                        found.setdefault(item, there[0])
    return found if len(found) == len(asked) else None


def _kind_and_type(question: Question) -> tuple[object, ...]:
    return question.closed, question.metadata.get("question_type", "")


def _kind(question: Question) -> tuple[object, ...]:
    return (question.closed,)


def _any(question: Question) -> tuple[object, ...]:
    return ()
