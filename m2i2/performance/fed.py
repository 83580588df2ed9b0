"""Shards through the loader against the same batches from memory: what loading costs per step."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from m2i2.config import PretrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.text.cleaning import clean_caption
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.performance.measuring import timed
from m2i2.performance.training import Timing, pretraining_task, trainer_of
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from m2i2.workflows.training_data import make_augmentation, make_loader

_KEPT = 4
"""Batches of the loader that are kept in memory."""
_PREFETCHED = 2
"""Batches that each worker of the loader makes ahead."""


class SwitchedBatches:
    """A loader's batches, or its first ones again and again from memory."""

    def __init__(self, loader: Loader[Any]) -> None:
        self.share, self.steps_per_epoch, self._loader = loader.share, loader.steps_per_epoch, loader
        self.from_memory = False

    def __iter__(self) -> Iterator[Batch]:
        kept: list[Batch] = []
        loaded, number = iter(self._loader), itertools.count()
        while True:
            if self.from_memory:
                yield kept[next(number) % len(kept)]
                continue
            batch = next(loaded)
            if len(kept) < _KEPT:
                kept.append(batch)
            yield batch


def time_feeding(config: PretrainingConfig, runtime: Runtime, timing: Timing, *, shards: Path, batch: int) -> dict[str, Any]:
    """Pairs per second from ``shards`` through ``data.workers`` workers, from memory, and their ratio. Collective.

    What the workers have made ahead is used up before the clock starts, so that their own pace is measured.
    """
    steps = timing.warm_up + _PREFETCHED * config.data.workers + 2 * timing.steps
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1, epochs=1))
    loader = _loader(config, runtime, shards, steps)
    trainer = trainer_of(pretraining_task(config, runtime), config, switched := SwitchedBatches(loader), runtime)
    for _ in range(timing.warm_up + _PREFETCHED * config.data.workers):
        trainer.step()
    fed, waited = _window(trainer, timing.steps, runtime.device)
    switched.from_memory = True
    for _ in range(_KEPT):
        trainer.step()
    drawn, _ = _window(trainer, timing.steps, runtime.device)
    return {
        "preset": config.preset,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "batch": batch,
        "ranks": runtime.process.ranks,
        "workers": config.data.workers,
        "steps": timing.steps,
        "pairs_per_s_fed": batch * timing.steps / fed,
        "pairs_per_s_from_memory": batch * timing.steps / drawn,
        "ratio": drawn / fed,
        "data_wait": waited / fed,
    }


def _window(trainer: Trainer, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of some steps together, and of those the seconds that they waited for data."""
    waited = 0.0

    def work() -> None:
        nonlocal waited
        for _ in range(steps):
            waited += trainer.step().waited

    return timed(work, device), waited


def _loader(config: PretrainingConfig, runtime: Runtime, shards: Path, steps: int) -> Loader[Any]:
    """The launcher's loader, for as many epochs as ``steps`` steps take."""
    corpus = Corpus.open([shards], "train", "captions", config.data)
    texts = (clean_caption(text, config.data.max_words) for part in corpus.parts for text in part.texts())
    rows = CaptionRows(
        augmentation=make_augmentation(config.vision.image_size, config.data),
        tokenizer=train_tokenizer(texts, config.text.vocabulary_size),
        max_words=config.data.max_words,
        max_tokens=config.data.max_tokens,
        text_mask_ratio=config.objectives.text_mask_ratio,
        patches=config.vision.patches,
    )
    per_epoch = max(1, len(corpus) // config.training.batch)
    training = replace(config.training, epochs=-(-steps // per_epoch) + 1)
    return make_loader(corpus, rows, config.data, training, runtime.process)
