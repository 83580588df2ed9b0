"""From positions in the epoch to batches: each rank its slice of every global batch, read by worker processes.

Global batch g of an epoch holds positions [g*B, (g+1)*B) of the order; the tail that fills no batch is dropped (it is
another one in every epoch). A micro-batch is a slice of it, and a rank's share a slice of that, so that the same
samples meet in a step whatever the number of ranks and workers.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from m2i2.data.batch import Batch, CaptionBatch, QuestionBatch
from m2i2.data.corpus import Corpus
from m2i2.data.masking import mask_tokens
from m2i2.data.order import Order
from m2i2.data.randomness import sample_generator
from m2i2.data.text import Tokenizer, clean_answer, clean_caption, clean_question
from m2i2.data.transforms import Augmentation
from m2i2.errors import M2I2Error

B = TypeVar("B", bound=Batch)
Row = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: ``step`` optimizer steps into ``epoch``. All that resuming needs."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank takes, and in how many micro-batches."""

    batch: int
    """Global batch, samples per optimizer step."""
    accumulation: int
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        if self.batch % (self.accumulation * self.ranks):
            raise M2I2Error(
                f"training.batch={self.batch} does not divide by {self.ranks} ranks x training.accumulation="
                f"{self.accumulation}; choose a multiple of {self.ranks * self.accumulation}."
            )

    @property
    def micro_batch(self) -> int:
        """Samples that this rank sees in one forward pass."""
        return self.batch // (self.accumulation * self.ranks)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, item), one a micro-batch of this rank, from ``start`` to the end of the last epoch."""

    def __init__(self, order: Order, share: Share, epochs: int, start: Position) -> None:
        self.order, self.share, self.epochs, self.start = order, share, epochs, start
        if len(order) < share.batch:
            raise M2I2Error(
                f"The data holds {len(order)} items, fewer than one batch of {share.batch}; lower training.batch or add data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return len(self.order) // self.share.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share, micro = self.share, self.share.micro_batch
        position = self.start
        while position.epoch < self.epochs:
            for step in range(position.step, self.steps_per_epoch):
                items = self.order.items(position.epoch, step * share.batch, (step + 1) * share.batch)
                for part in items.reshape(share.accumulation, share.ranks, micro)[:, share.rank]:
                    yield [(position.epoch, int(item)) for item in part]
            position = Position(position.epoch + 1, 0)


@dataclass(frozen=True)
class CaptionRows:
    """How a caption sample becomes a row: augmented, tokenised, masked, all from its own random stream."""

    augmentation: Augmentation
    tokenizer: Tokenizer
    max_words: int
    max_tokens: int
    text_mask_ratio: float
    patches: int

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """One row; raises M2I2Error, naming the sample, for an image that cannot be decoded or a caption without a word."""
        captions = sample.captions
        caption = clean_caption(captions[int(rng.integers(len(captions)))], self.max_words)
        if not caption:
            raise M2I2Error(f"Sample {sample.key!r} of {sample.shard} has a caption without a word; rebuild the shards.")
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
        """Rows padded to the longest caption."""
        pad = self.tokenizer.pad_id
        ids, mask = _pad([row["input_ids"] for row in rows], pad)
        return CaptionBatch(
            image=torch.stack([row["image"] for row in rows]),
            item=torch.tensor([row["item"] for row in rows]),
            input_ids=ids,
            attention_mask=mask,
            masked_input_ids=_pad([row["masked_input_ids"] for row in rows], pad)[0],
            labels=_pad([row["labels"] for row in rows], -100)[0],
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
    normalisation: str

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """One row; raises M2I2Error, naming the sample, for an image that cannot be decoded or an empty answer."""
        question = clean_question(sample.question.question, self.max_words, self.normalisation)
        answer = clean_answer(sample.question.answer, self.normalisation)
        limit = self.tokenizer.max_length
        return {
            "image": self.augmentation(sample.image, rng, sample.key),
            "question_ids": self.tokenizer.encode(question, limit),
            "answer_ids": [*self.tokenizer.encode(answer, limit - 1), self.tokenizer.sep_id],
        }

    def collate(self, rows: list[Row]) -> QuestionBatch:
        """Rows padded to the longest question and answer."""
        question_ids, question_mask = _pad([row["question_ids"] for row in rows], self.tokenizer.pad_id)
        answer_ids, answer_mask = _pad([row["answer_ids"] for row in rows], self.tokenizer.pad_id)
        return QuestionBatch(
            image=torch.stack([row["image"] for row in rows]),
            item=torch.tensor([row["item"] for row in rows]),
            question_ids=question_ids,
            question_mask=question_mask,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
        )


def _pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one [B, longest] int64 tensor, and its mask of ones and zeros."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class _Items(Dataset[Row]):
    """Items by (epoch, number), each with its own random stream."""

    def __init__(self, corpus: Corpus, rows: Callable[[Any, np.random.Generator], Row], seed: int) -> None:
        self.corpus, self.rows, self.seed = corpus, rows, seed

    def __getitem__(self, index: Any) -> Row:
        epoch, item = index
        return {"item": item, **self.rows(self.corpus.read(item), sample_generator(self.seed, epoch, item))}


def _start_worker(_: int) -> None:
    """Workers leave signals to the training process and compute on one thread."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


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
        start: Position | None = None,
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
        self.sampler = StepSampler(
            Order(corpus.shard_items, corpus.fingerprint, seed, window), share, epochs, start or Position()
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[B]:
        return iter(
            DataLoader(
                _Items(self.corpus, self.rows, self.seed),
                batch_sampler=self.sampler,
                collate_fn=self.rows.collate,
                num_workers=self.workers,
                worker_init_fn=_start_worker if self.workers else None,
                prefetch_factor=2 if self.workers else None,
                pin_memory=self.pin_memory,
            )
        )

    def starting_at(self, start: Position) -> None:
        """Begin the next iteration at ``start``."""
        self.sampler.start = replace(start)
