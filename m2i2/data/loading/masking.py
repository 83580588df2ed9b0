"""Which words of a caption are to be predicted (masked language modelling), drawn per sample."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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


def places_of(labels: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """[b, L] labels -> [M] numbers of the masked positions in the flattened batch, filled up with one where nothing is asked.

    M is one of a few capacities, so that shapes repeat from batch to batch: that which 999 of 1,000 draws with ``ratio`` fit
    (mean and three deviations, a multiple of 8), doubled until all masked positions fit. None is ever dropped.
    """
    found = np.flatnonzero(labels != -100)
    words = labels.size - len(labels)
    capacity = 8 * math.ceil((ratio * words + 3 * math.sqrt(ratio * (1 - ratio) * words)) / 8)
    while capacity < len(found):
        capacity *= 2
    places = np.full(min(capacity, labels.size), (labels == -100).argmax(), dtype=np.int64)
    places[: len(found)] = found
    return places
