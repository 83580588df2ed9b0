"""What the loader hands to a model: tensors of one rank's micro-batch.

Everything random about a sample (crop, masked words, masked patches) was drawn in the loader from (seed, epoch, sample
id), so a batch means the same whatever the number of ranks and workers. ``B`` samples, ``L`` tokens, ``P`` patches.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from m2i2.data.loading.slots import received

T = TypeVar("T", bound="Batch")


@dataclass(kw_only=True)
class Batch:
    """Tensors that move together; `image` is uint8 until it is normalised on the device."""

    image: Tensor
    """[B, 3, H, W] uint8 from the loader; models take float, normalised."""
    item: Tensor
    """[B] int64, the samples' numbers in the data set."""
    unreadable: tuple[tuple[int, str], ...] = ()
    """(number, reason) of the samples that could not be read; others of the data set stand in their places."""

    def to(self: T, device: torch.device) -> T:
        """The same batch on ``device``."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: T) -> T:
        """The same batch in page-locked memory (called by DataLoader)."""
        return self.received().each(Tensor.pin_memory)

    def received(self: T) -> T:
        """The same batch, which has come from a worker: the memory that its images lie in is the worker's again after it."""
        return replace(self, image=received(self.image))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def each(self: T, change: Callable[[Tensor], Tensor]) -> T:
        """The same batch with every tensor changed."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.item)


@dataclass(kw_only=True)
class CaptionBatch(Batch):
    """Image-caption pairs with their masks."""

    input_ids: Tensor
    """[B, L] int64, [CLS] first, padded to one of a few lengths, the same on every rank."""
    attention_mask: Tensor
    """[B, L] int64, 1 for tokens, 0 for padding."""
    masked_input_ids: Tensor
    """[B, L] int64, the caption with its masked words (MLM)."""
    labels: Tensor
    """[B, L] int64, the original token where one is to be predicted, else -100; never at [CLS]."""
    places: Tensor
    """[M] int64, numbers of the masked positions in the flattened batch, filled up to one of a few capacities M, so that
    shapes repeat: see `masking.places_of`."""
    student_noise: Tensor
    """[B, P] float32 in [0, 1): the patches with the lowest values stay visible to the student."""
    teacher_noise: Tensor
    """[B, P] the same for the teacher."""
    image_id: Tensor
    """[B] int64, equal for equal images."""
    caption_id: Tensor
    """[B] int64, equal for equal captions."""


@dataclass(kw_only=True)
class QuestionBatch(Batch):
    """Questions about images, with one answer each."""

    question_ids: Tensor
    """[B, L] int64."""
    question_mask: Tensor
    """[B, L] int64."""
    answer_ids: Tensor
    """[B, A] int64: [CLS] answer [SEP] (official: [SEP] twice), padded."""
    answer_mask: Tensor
    """[B, A] int64."""
