"""Which words of a caption are to be predicted (masked language modelling), drawn per sample."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class _Vocabulary(Protocol):
    size: int
    cls_id: int
    pad_id: int
    mask_id: int


def mask_tokens(ids: Sequence[int], rng: np.random.Generator, ratio: float, vocabulary: _Vocabulary) -> tuple[list[int], list[int]]:
    """Mask a caption as BERT and the official code do.

    Every token but [CLS] and padding is selected with probability ``ratio``; of the selected ones 80 % become [MASK],
    10 % a random token of the vocabulary, 10 % stay. Returns the masked ids and the labels, -100 where nothing is asked.
    """
    original = np.asarray(ids, dtype=np.int64)
    draws = rng.random((2, len(original)))
    selected = (draws[0] < ratio) & (original != vocabulary.cls_id) & (original != vocabulary.pad_id)
    masked = np.where(selected & (draws[1] < 0.8), vocabulary.mask_id, original)
    random_tokens = rng.integers(vocabulary.size, size=len(original))
    masked = np.where(selected & (draws[1] >= 0.9), random_tokens, masked)
    return masked.tolist(), np.where(selected, original, -100).tolist()
