"""What an objective can read of a micro-batch: the student's states, the teacher's targets, and everyone's features.

Shapes: b pairs of this rank, B of all ranks, Q in the queue, L tokens, N image tokens, P masked patches, M masked words, V words of
the vocabulary, D wide.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from m2i2.data.loading.batch import CaptionBatch


class Contrast(NamedTuple):
    """The contrast's loss, and the similarities that hard negatives are drawn by."""

    loss: Tensor
    image_to_text: Tensor
    """[b, B + Q] student image against teacher texts, divided by the temperature."""
    text_to_image: Tensor


class Matching(NamedTuple):
    """What the matching head says of true pairs and hard negatives."""

    logits: Tensor
    """[3 * b, 2]: true pairs, a negative image for each text, a negative text for each image."""
    image_there: Tensor
    """[b] bool, whether the text has a negative image."""
    text_there: Tensor
    """[b] bool, whether the image has a negative text."""
    mean_rows: Tensor
    """[] rows of a rank that count, the mean over the ranks."""


class Words(NamedTuple):
    """What is predicted at the masked words."""

    logits: Tensor
    """[M, V] the student's."""
    labels: Tensor
    """[M] the words themselves; -100 where nothing is asked."""
    teacher_logits: Tensor
    """[M, V]"""
    mean_count: Tensor
    """[] masked words of a rank, the mean over the ranks."""


class Pixels(NamedTuple):
    """What is reconstructed at the masked patches."""

    predicted: Tensor
    """[b, P, patch * patch * 3]"""
    target: Tensor
    """[b, P, patch * patch * 3] in the encoder's normalised pixel values."""


class States(ABC):
    """The states of one micro-batch. Each is computed when an objective first asks for it, and then kept.

    ``matching`` and ``words`` share one pass of the multimodal encoder: an objective that reads them says so where it is
    registered.
    """

    batch: CaptionBatch
    distillation: float | Tensor
    """Share a of the teacher's soft targets at this step; [] float64 on the device in training, the number 0 where it is off."""
    image_states: Tensor
    """[b, N, D] visible patches, [CLS] first."""
    text_states: Tensor
    """[b, L, D] of the whole captions."""
    image_features: Tensor
    """[b, projection], L2-normalised."""
    text_features: Tensor
    """[b, projection], L2-normalised."""

    @property
    @abstractmethod
    def contrast(self) -> Contrast:
        """The image-text contrast against the global batch and the queue."""

    @property
    @abstractmethod
    def pixels(self) -> Pixels:
        """The pixel decoder's output."""

    @property
    @abstractmethod
    def matching(self) -> Matching:
        """The matching head's output on true pairs and hard negatives."""

    @property
    @abstractmethod
    def words(self) -> Words:
        """The vocabulary head's output at the masked words."""
