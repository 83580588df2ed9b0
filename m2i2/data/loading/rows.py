"""From a sample to its row, by its own random stream, and from rows to a batch: captions for pretraining, questions for VQA."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.batch import CaptionBatch, QuestionBatch
from m2i2.data.loading.items import Row, unreadable_of
from m2i2.data.loading.masking import mask_tokens, places_of
from m2i2.data.loading.padding import pad_rows
from m2i2.data.loading.slots import stacked
from m2i2.data.text.cleaning import Normalisation, clean_answer, clean_caption, clean_question
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.errors import M2I2Error

Augmented = Callable[[bytes, np.random.Generator, str], torch.Tensor]
"""An encoded image, its random stream and its name -> [3, H, W] uint8."""


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
            unreadable=unreadable_of(rows),
            image=stacked([row["image"] for row in rows]),
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
            unreadable=unreadable_of(rows),
            image=stacked([row["image"] for row in rows]),
            item=torch.tensor([row["item"] for row in rows]),
            question_ids=question_ids,
            question_mask=question_mask,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
        )
