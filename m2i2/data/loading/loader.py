"""From samples to batches: rows made by worker processes, each from its sample's own random stream."""

import atexit
import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.batch import Batch, CaptionBatch, QuestionBatch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.lookahead import Lookahead
from m2i2.data.loading.masking import mask_tokens, places_of
from m2i2.data.loading.order import Order
from m2i2.data.loading.randomness import sample_generator
from m2i2.data.loading.sampling import Position, Share, StepSampler
from m2i2.data.loading.workers import start_worker
from m2i2.data.shards.storage import Unavailable
from m2i2.data.text.cleaning import Normalisation, clean_answer, clean_caption, clean_question
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.errors import M2I2Error

B = TypeVar("B", bound=Batch)
Row = dict[str, Any]
Augmented = Callable[[bytes, np.random.Generator, str], torch.Tensor]
"""An encoded image, its random stream and its name -> [3, H, W] uint8."""
_SUBSTITUTES = 16


@dataclass(frozen=True)
class CaptionRows:
    """How a caption sample becomes a row: augmented, tokenised, masked, all from its own random stream."""

    augmentation: Augmented
    tokenizer: Tokenizer
    max_words: int
    max_tokens: int
    text_mask_ratio: float
    patches: int
    lengths: tuple[int, ...] = ()
    """The lengths, in tokens, that captions are padded to; on several ranks one, so that all agree. Empty: multiples of 8."""

    @classmethod
    def of(cls, config: PretrainingConfig, augmentation: Augmented, tokenizer: Tokenizer, ranks: int) -> "CaptionRows":
        """As the settings have it, for one of ``ranks`` ranks."""
        return cls(
            augmentation=augmentation,
            tokenizer=tokenizer,
            max_words=config.data.max_words,
            max_tokens=config.data.max_tokens,
            text_mask_ratio=config.objectives.text_mask_ratio,
            patches=config.vision.patches,
            lengths=(config.data.max_tokens,) if ranks > 1 else (),
        )

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """One row; raises M2I2Error, naming the sample, for an image that cannot be decoded or a caption without words."""
        captions = sample.captions
        caption = clean_caption(captions[int(rng.integers(len(captions)))], self.max_words)
        if not caption:
            raise M2I2Error(f"Sample {sample.key!r} of {sample.shard} has a caption without words; rebuild the shards.")
        ids = self.tokenizer.encode(caption, self.max_tokens)
        masked, labels = mask_tokens(ids, rng, self.text_mask_ratio, self.tokenizer)
        return {
            "image": self.augmentation(sample.image, rng, sample.key),
            "input_ids": ids,
            "masked_input_ids": masked,
            "labels": labels,
            "student_noise": rng.random(self.patches, dtype=np.float32),
            "teacher_noise": rng.random(self.patches, dtype=np.float32),
            "image_id": int(sample.image_sha256[:15], 16),
            "caption_id": int(hashlib.sha256(caption.encode()).hexdigest()[:15], 16),
        }

    def collate(self, rows: list[Row]) -> CaptionBatch:
        """Rows padded to the length that the longest caption needs."""
        pad, longest = self.tokenizer.pad_id, max(len(row["input_ids"]) for row in rows)
        length = next((one for one in self.lengths if one >= longest), min(self.max_tokens, -(-longest // 8) * 8))
        ids, mask = pad_rows([row["input_ids"] for row in rows], pad, length)
        labels = pad_rows([row["labels"] for row in rows], -100, length)[0]
        return CaptionBatch(
            image=default_collate([row["image"] for row in rows]),  # a worker stacks into memory that it shares
            item=torch.tensor([row["item"] for row in rows]),
            input_ids=ids,
            attention_mask=mask,
            masked_input_ids=pad_rows([row["masked_input_ids"] for row in rows], pad, length)[0],
            labels=labels,
            places=torch.from_numpy(places_of(labels.numpy(), self.text_mask_ratio)),
            student_noise=torch.from_numpy(np.stack([row["student_noise"] for row in rows])),
            teacher_noise=torch.from_numpy(np.stack([row["teacher_noise"] for row in rows])),
            image_id=torch.tensor([row["image_id"] for row in rows]),
            caption_id=torch.tensor([row["caption_id"] for row in rows]),
        )


@dataclass(frozen=True)
class QuestionRows:
    """How a question becomes a row. The answer ends in two [SEP], as in the official code: one it writes, one the tokenizer."""

    augmentation: Augmentation
    tokenizer: Tokenizer
    max_words: int
    max_tokens: int
    normalisation: Normalisation

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """One row; raises M2I2Error, naming the sample, for an image that cannot be decoded or an empty answer."""
        question = clean_question(sample.question.question, self.max_words, self.normalisation)
        answer = clean_answer(sample.question.answer, self.normalisation)
        limit = self.max_tokens
        return {
            "image": self.augmentation(sample.image, rng, sample.key),
            "question_ids": self.tokenizer.encode(question, limit),
            "answer_ids": self.tokenizer.encode_answer(answer, limit),
        }

    def collate(self, rows: list[Row]) -> QuestionBatch:
        """Rows padded to the longest question and answer."""
        question_ids, question_mask = pad_rows([row["question_ids"] for row in rows], self.tokenizer.pad_id)
        answer_ids, answer_mask = pad_rows([row["answer_ids"] for row in rows], self.tokenizer.pad_id)
        return QuestionBatch(
            image=default_collate([row["image"] for row in rows]),  # a worker stacks into memory that it shares
            item=torch.tensor([row["item"] for row in rows]),
            question_ids=question_ids,
            question_mask=question_mask,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
        )


def pad_rows(rows: list[list[int]], value: int, length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one [B, longest] int64 tensor, at least ``length`` long, and its mask of ones and zeros."""
    longest = max(length, *map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class _Items(Dataset[Row | M2I2Error]):
    """Items by (epoch, number), each with its own random stream.

    In the place of an item that cannot be read comes another one of the data set, drawn from the item's own stream: every
    rank goes on with the same number of steps, and a rerun makes the same choice. Not so where a store does not answer:
    that is an error.
    """

    def __init__(
        self, corpus: Corpus, rows: Callable[[Any, np.random.Generator], Row], seed: int, lookahead: Lookahead | None
    ) -> None:
        self.corpus, self.rows, self.seed, self.lookahead = corpus, rows, seed, lookahead

    def __getitem__(self, index: Any) -> Row | M2I2Error:
        epoch, item = index
        if self.lookahead:
            self.lookahead.reading(epoch, item)
        unreadable: list[tuple[int, str]] = []
        others = iter(sample_generator(self.seed, epoch, item, stream=1).integers(len(self.corpus), size=_SUBSTITUTES))
        while True:
            try:
                row = self.rows(self.corpus.read(item), sample_generator(self.seed, epoch, item))
                return {"item": item, "unreadable": unreadable, **row}
            except Unavailable as e:
                return e
            except M2I2Error as e:
                unreadable.append((item, str(e)))
                try:
                    item = int(next(others))
                except StopIteration:
                    return M2I2Error(f"{len(unreadable)} samples in a row could not be read; the first: {unreadable[0][1]}")


@dataclass(frozen=True)
class _Collate:
    """Rows to a batch that also says what could not be read.

    An error travels in the batch's place: raised in a worker it would arrive with the worker's traceback as its text.
    """

    rows: Any

    def __call__(self, rows: list[Row | M2I2Error]) -> Batch | M2I2Error:
        good: list[Row] = []
        for row in rows:
            if isinstance(row, M2I2Error):
                return row
            good.append(row)
        batch: Batch = self.rows.collate(good)
        batch.unreadable = tuple(entry for row in good for entry in row["unreadable"])
        return batch


def _raising(batches: Iterator[B | M2I2Error]) -> Iterator[B]:
    """The batches, up to an error, which is raised; the workers end with it, or when the caller stops asking."""
    _WORKING.add(batches)
    try:
        for batch in batches:
            if isinstance(batch, M2I2Error):
                raise batch
            yield batch
    finally:
        _end_workers(batches)


_WORKING: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Iterators that may have workers."""


def _end_workers(batches: Any) -> None:
    """End the workers of a DataLoader's iterator. They ignore SIGTERM, with which multiprocessing would end them at exit."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


@atexit.register
def _end_all_workers() -> None:
    for batches in list(_WORKING):
        _end_workers(batches)


class Loader(Generic[B]):
    """Batches of this rank in training order; iterating again starts at the position given to `starting_at`."""

    def __init__(
        self,
        corpus: Corpus,
        rows: Any,
        share: Share,
        *,
        epochs: int,
        seed: int,
        window: int,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.corpus, self.rows, self.share, self.seed, self.workers, self.pin_memory = (
            corpus,
            rows,
            share,
            seed,
            workers,
            pin_memory,
        )
        order = Order(corpus.shard_items, corpus.fingerprint, seed, window)
        self.sampler = StepSampler(order, share, epochs, Position())
        remote = any(part.storage.capacity is not None for part in corpus.parts)
        self.lookahead = Lookahead(corpus, order, epochs) if remote else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[B]:
        loader = DataLoader(
            _Items(self.corpus, self.rows, self.seed, self.lookahead),
            batch_sampler=self.sampler,
            collate_fn=_Collate(self.rows),
            num_workers=self.workers,
            worker_init_fn=start_worker if self.workers else None,
            prefetch_factor=2 if self.workers else None,
            pin_memory=self.pin_memory,
        )
        return _raising(iter(loader))

    def starting_at(self, start: Position) -> None:
        """Begin the next iteration at ``start``."""
        self.sampler.start = replace(start)
