"""Training runs on a few real ranks with a task of the test's own making, through the training loop's public door."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from m2i2.config import PretrainingConfig
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.text.tokenizer import Tokenizer, train_tokenizer
from m2i2.models.pretraining import PretrainingModel
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.processes import Process
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from m2i2.workflows.training_data import make_augmentation, make_loader


def narrow(shards: Path, workers: int) -> PretrainingConfig:
    """The preset tiny with smaller networks and batches, without validation: steps of some milliseconds."""
    base = preset("tiny")[0]
    return replace(
        base,
        vision=replace(base.vision, image_size=32, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2),
        text=replace(base.text, width=32, depth=2, fusion_layer=1, heads=2, intermediate=64),
        objectives=replace(base.objectives, queue=24, projection=16),
        data=replace(base.data, shards=(str(shards),), workers=workers),
        training=replace(base.training, batch=8, precision="float32"),
        validation=replace(base.validation, every=0),
    )


def tokenizer_of(corpus: Corpus) -> Tokenizer:
    """A tokenizer of the corpus' own captions."""
    return train_tokenizer((text for part in corpus.parts for text in part.texts()), 1024)


def loader_of(config: PretrainingConfig, corpus: Corpus, tokenizer: Tokenizer, process: Process) -> Loader[Any]:
    """The loader that the launcher would make."""
    rows = CaptionRows.of(config, make_augmentation(config.vision.image_size, config.data), tokenizer, process.ranks)
    return make_loader(corpus, rows, config.data, config.training, process, together=config.objectives.scope == "batch")


def trainer_of(config: PretrainingConfig, folder: Path, task_type: type[PretrainingTask] = PretrainingTask) -> Trainer:
    """A trainer of a ``task_type`` in ``folder``, as the launcher would make it, resumed."""
    runtime = Runtime.start(config.training)
    corpus = Corpus.open(config.data.shards, config.data.split, "captions")
    tokenizer = tokenizer_of(corpus)
    torch.manual_seed(0)
    task = task_type(PretrainingModel(config.vision, config.text, config.objectives), config, torch.float32)
    folder.mkdir(exist_ok=True)
    loader = loader_of(config, corpus, tokenizer, runtime.process)
    trainer = Trainer(config, task, loader, runtime, folder, tokenizer.save)
    trainer.resume()
    return trainer


def run(config: PretrainingConfig, folder: Path, task_type: type[PretrainingTask]) -> int:
    """Train a ``task_type`` in ``folder`` as the launcher would; returns the exit code."""
    return trainer_of(config, folder, task_type).run()
