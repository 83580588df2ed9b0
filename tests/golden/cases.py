"""Inputs of the golden runs: sizes, weights, batches and forced negatives, all from numpy's Philox under fixed keys.

Nothing here depends on torch's generators, on the order in which a model is initialised, or on the code under test.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Kind = Literal["pretraining", "finetuning"]

STEPS, BATCH, STEPS_PER_EPOCH, EPOCHS = 20, 8, 8, 3
"""Optimizer steps of a run (the schedule goes on for 24), samples of one, and the epochs that the schedules count in."""
PAD, CLS, SEP, MASK, FIRST_WORD, VOCABULARY = 0, 2, 3, 4, 5, 60
QUEUE, PROJECTION = 20, 8
VISION: dict[str, Any] = {
    **{"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    **{"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
}
TEXT: dict[str, Any] = {
    **{"vocabulary_size": VOCABULARY, "width": 16, "depth": 4, "fusion_layer": 2, "heads": 2, "intermediate": 32},
    **{"positions": 16, "dropout": 0.0, "attention_dropout": 0.0, "decoder_depth": 2},
}
OBJECTIVES: dict[str, Any] = {
    **{"projection": PROJECTION, "queue": QUEUE, "image_mask_ratio": 0.25, "distillation": 0.4, "momentum": 0.95},
    **{"negatives": "global", "false_negatives": "exclude"},
}
ANSWERING: dict[str, Any] = {"distillation": 0.4, "momentum": 0.95, "answer_weight": 0.5}
OPTIMIZER: dict[str, Any] = {
    **{"lr": 1e-3, "final_lr": 1e-4, "warmup_lr": 1e-4, "warmup_epochs": 0.5, "weight_decay": 0.02},
    # AdamW turns gradients that are zero but for rounding (keys' biases) into steps: on 2 ranks and on 1 the records
    # differ by 6e-11 with its usual 1e-8, by 6e-13 with this
    "eps": 1e-6,
}
IMAGES, CAPTIONS = 30, 30
"""Pictures and captions that the batches draw from; with 20 in the queue many come again while they are still in it."""
NO_NEGATIVE_STEP = 11
"""The step in which the first pair shares its image or its caption with every other one, and so has no negative."""


@dataclass(frozen=True)
class Case:
    """A run that is recorded once, and must come out the same on every number of ranks."""

    kind: Kind
    accumulation: int = 1


CASES = {
    "pretraining": Case("pretraining"),
    "pretraining-accumulated": Case("pretraining", accumulation=2),
    "finetuning": Case("finetuning"),
}


class Micro(NamedTuple):
    """One rank's rows of a micro-batch."""

    batch: dict[str, Tensor]
    """A batch's fields by name; texts are only as long as the longest of these rows."""
    image_negatives: list[int]
    """For each row's caption, the row of the whole micro-batch whose image is its negative; -1: there is none."""
    text_negatives: list[int]
    """For each row's image, the row whose caption is its negative."""


def generator(*key: object) -> np.random.Generator:
    """The random stream of a key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


# --- weights


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """The parameter ``name`` before the first step, in double precision and well conditioned.

    Embeddings are of the size that a LayerNorm makes of them, and the temperature is mild: with embeddings of 0.02 and 0.07 the
    gradients reach 20 and rounding grows from step to step.
    """
    values = generator("weight", name).standard_normal(tuple(shape))
    if name == "temp":
        values = np.full(tuple(shape), 0.3)
    elif "norm" in name.lower():
        values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("bias"):
        values = 0.05 * values
    elif "embeddings" in name or name.endswith("_token"):
        values = 0.5 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values)


def queue_start(name: str) -> Tensor:
    """The queue's rows ``image`` or ``text`` before the first step: random directions [QUEUE, PROJECTION]."""
    rows = generator("queue", name).standard_normal((QUEUE, PROJECTION))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def probe(name: str, size: int) -> Tensor:
    """The vector that a tensor's record is multiplied with."""
    return torch.from_numpy(generator("probe", name).standard_normal(size))


# --- batches


def micro_batch(case: Case, step: int, micro: int, rank: int, ranks: int) -> Micro:
    """What a rank sees of micro-batch ``micro`` of ``step``."""
    together = BATCH // case.accumulation
    first, rows = micro * together, together // ranks
    mine = slice(first + rank * rows, first + (rank + 1) * rows)
    if case.kind == "finetuning":
        return Micro(_trimmed(_questions(step), mine, {"question": "question_mask", "answer": "answer_mask"}), [], [])
    whole = _pairs(step)
    images, texts = _negatives(whole, step, slice(first, first + together))
    own = slice(rank * rows, (rank + 1) * rows)
    texts_of = {
        "input_ids": "attention_mask",
        "masked": "attention_mask",
        "attention": "attention_mask",
        "labels": "attention_mask",
    }
    return Micro(_trimmed(whole, mine, texts_of), images[own], texts[own])


def _trimmed(whole: Mapping[str, Tensor], rows: slice, masks: Mapping[str, str]) -> dict[str, Tensor]:
    """The rows, their texts cut to the longest one; ``masks``: how a text field's name starts, and the field of its mask."""
    found = {}
    for name, tensor in whole.items():
        mask = next((field for start, field in masks.items() if name.startswith(start)), None)
        found[name] = tensor[rows] if mask is None else tensor[rows, : int(whole[mask][rows].sum(1).max())]
    return found


def _image(number: int) -> np.ndarray:
    side = VISION["image_size"]
    return generator("image", number).integers(0, 256, (3, side, side), dtype=np.uint8)


def _words(kind: str, number: int, least: int, most: int) -> list[int]:
    random = generator(kind, number)
    count = int(random.integers(least, most + 1))
    return [CLS, *random.integers(FIRST_WORD, VOCABULARY, count).tolist(), SEP]


def _padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B, L] each."""
    longest = max(map(len, texts))
    ids = [[*text, *[PAD] * (longest - len(text))] for text in texts]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    return torch.tensor(ids), torch.tensor(mask)


def _pairs(step: int) -> dict[str, Tensor]:
    """The global batch of captions: in every third step two pairs share an image and two a caption."""
    random = generator("pairs", step)
    images = random.choice(IMAGES, BATCH, replace=False)
    captions = images.copy()
    if step == NO_NEGATIVE_STEP:
        images[1:4] = images[0]
        captions[4:] = captions[0]
    elif step % 3 == 1:
        images[6], captions[7] = images[1], captions[3]
    ids, mask = _padded([_words("caption", int(number), 3, 10) for number in captions])
    words = (mask.numpy() == 1) & (ids.numpy() >= FIRST_WORD)
    chosen = words & (random.random(words.shape) < 0.25)
    for rows in (slice(0, 4), slice(4, 8)):  # a micro-batch has a masked word, a rank need not have one
        chosen[rows, 1] |= ~chosen[rows].any()
    how = random.random(words.shape)
    others = random.integers(FIRST_WORD, VOCABULARY, words.shape)
    masked = np.where(how < 0.8, MASK, np.where(how < 0.9, others, ids.numpy()))
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    noise = random.random((2, BATCH, patches), dtype=np.float32)
    return {
        "image": torch.from_numpy(np.stack([_image(int(number)) for number in images])),
        "item": torch.arange(BATCH) + BATCH * step,
        "input_ids": ids,
        "attention_mask": mask,
        "masked_input_ids": torch.from_numpy(np.where(chosen, masked, ids.numpy())),
        "labels": torch.from_numpy(np.where(chosen, ids.numpy(), -100)),
        "student_noise": torch.from_numpy(noise[0]),
        "teacher_noise": torch.from_numpy(noise[1]),
        "image_id": torch.from_numpy(images.astype(np.int64)),
        "caption_id": torch.from_numpy(captions.astype(np.int64)),
    }


def _negatives(whole: Mapping[str, Tensor], step: int, rows: slice) -> tuple[list[int], list[int]]:
    """Negative images for texts, and texts for images, of the whole micro-batch ``rows``: rows of it, -1 for none."""
    image, caption = whole["image_id"][rows].numpy(), whole["caption_id"][rows].numpy()
    allowed = (image[:, None] != image[None]) & (caption[:, None] != caption[None])
    random = generator("negatives", step, rows.start, rows.stop)

    def one_each() -> list[int]:
        return [int(random.choice(np.flatnonzero(row))) if row.any() else -1 for row in allowed]

    return one_each(), one_each()


def _questions(step: int) -> dict[str, Tensor]:
    """The global batch of questions."""
    random = generator("questions", step)
    questions, question_mask = _padded([_words("question", int(number), 3, 9) for number in random.integers(0, 40, BATCH)])
    # as in training: the answer's [SEP] twice
    answers, answer_mask = _padded([[*_words("answer", int(number), 1, 4), SEP] for number in random.integers(0, 20, BATCH)])
    return {
        "image": torch.from_numpy(np.stack([_image(int(number)) for number in random.integers(0, IMAGES, BATCH)])),
        "item": torch.arange(BATCH) + BATCH * step,
        "question_ids": questions,
        "question_mask": question_mask,
        "answer_ids": answers,
        "answer_mask": answer_mask,
    }
