"""Small runs on the device that is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2i2.config import PretrainingConfig
from m2i2.data.loading.corpus import Corpus
from m2i2.models.pretraining import PretrainingModel
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from tests.distributed.training_runs import loader_of, tokenizer_of
from tests.unit.test_graphs import settings


def of_shards(shards: Path, **training: Any) -> PretrainingConfig:
    """A minute model on stored captions, batches of 16, without dropout.

    A CPU's own kernels, made for larger models, would take ten times as long as the plain ones.
    """
    kernels = "auto" if torch.cuda.is_available() else "plain"
    base: PretrainingConfig = settings(PretrainingConfig, batch=16, epochs=40, log_every=1, kernels=kernels, **training)
    return replace(
        base,
        text=replace(base.text, vocabulary_size=1024, positions=32, dropout=0.0),
        data=replace(base.data, shards=(str(shards),), workers=0),
        # with AdamW's usual 1e-8 a gradient that is zero but for rounding (keys' biases) moves its weight by the learning rate
        optimizer=replace(base.optimizer, lr=1e-4, warmup_epochs=0.0, eps=1e-6, clip=1.0),
    )


def trainer_of(config: PretrainingConfig, folder: Path) -> Trainer:
    """The launcher's trainer, with weights that the seed decides."""
    runtime = Runtime.start(config.training)
    corpus = Corpus.open(config.data.shards, "train", "captions")
    tokenizer = tokenizer_of(corpus)
    torch.manual_seed(0)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, runtime.dtype)
    return Trainer(config, task, loader_of(config, corpus, tokenizer, runtime.process), runtime, folder, tokenizer.save)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that a checkpoint of one rank holds, on the CPU."""
    gathered = trainer.engine.moments()
    assert gathered is not None
    found = {f"optimizer.{name}": tensor.cpu().clone() for name, tensor in gathered.tensors.items()}
    for part, module in {"student": trainer.task.student, **trainer.task.beside}.items():
        found |= {f"{part}.{name}": tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    return found


def losses_of(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """The losses of so many steps."""
    found = [trainer.step().losses for _ in range(steps)]  # read once all are launched
    return [{name: sum(float(one[name]) for one in step) / len(step) for name in step[0]} for step in found]
