"""ZeRO-2 on any number of ranks, DeepSpeed's own with offloading too, takes the steps of plain AdamW in one process."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from m2i2.backends.choice import choose
from m2i2.cli.make_shards import main as make_shards
from m2i2.config import PretrainingConfig
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.models.pretraining import PretrainingModel
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from m2i2.training.deepspeed.engine import ShardedEngine
from m2i2.training.local import LocalEngine
from m2i2.training.optimizer import adamw, learning_rate
from m2i2.training.processes import Process
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from m2i2.training.zero import ZeroEngine
from tests.conftest import ROOT
from tests.distributed.processes import on_ranks
from tests.distributed.training_runs import loader_of, tokenizer_of
from tests.preloaded import LONG

STEPS = 20 if LONG else 8  # an epoch has 6
Scope = Literal["batch", "micro_batch"]
WAYS: tuple[tuple[int, Scope, str], ...] = (
    *((1, "batch", "zero2"), (2, "micro_batch", "zero2"), (2, "batch", "zero2")),
    (1, "batch", "zero2_offload"),
)
"""Micro-batches of a step, what its losses are computed over, and the DeepSpeed configuration."""
Outcome = tuple[list[dict[str, float]], dict[str, np.ndarray], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero") / "captions"
    assert make_shards(["captions", "phantoms", "--output", str(folder), "--count", "96", "--side", "64"]) == 0
    return folder


def settings(shards: Path, accumulation: int, scope: Scope) -> PretrainingConfig:
    base = preset("tiny")[0]
    return replace(
        base,
        data=replace(base.data, shards=(str(shards),), workers=0),
        objectives=replace(base.objectives, queue=48, scope=scope),
        # with AdamW's usual 1e-8 a gradient that is zero but for rounding (keys' biases) moves its weight by the learning rate
        optimizer=replace(base.optimizer, lr=1e-4, warmup_epochs=0.0, eps=1e-6),
        training=replace(base.training, batch=16, accumulation=accumulation, epochs=5, precision="float32"),
    )


def build(config: PretrainingConfig, process: Process) -> tuple[PretrainingTask, Loader[Any]]:
    """The task and this rank's loader."""
    corpus = Corpus.open(config.data.shards, "train", "captions")
    loader = loader_of(config, corpus, tokenizer_of(corpus), process)
    torch.manual_seed(0)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, torch.float32)
    return task, loader


def outcome(task: PretrainingTask, history: list[list[dict[str, Tensor]]]) -> Outcome:
    """Losses (means over micro-batches) of every step, and the student's and the teacher's weights."""
    rows = [{name: float(sum(one[name].detach() for one in step)) / len(step) for name in step[0]} for step in history]
    student = {name: t.detach().numpy() for name, t in task.student.state_dict().items()}
    return rows, student, {name: t.numpy() for name, t in task.teacher.state_dict().items()}


def plain_steps(config: PretrainingConfig) -> Outcome:
    """20 steps of plain AdamW in one process without an engine."""
    task, loader = build(config, Process(0, 1, torch.device("cpu")))
    optimizer = adamw(task.student, config.optimizer, choose(torch.device("cpu")))
    history, batches, accumulation = [], iter(loader), config.training.accumulation
    for step in range(STEPS):
        task.begin_step(step, loader.steps_per_epoch)
        losses = []
        for micro in range(accumulation):
            output = task.forward(next(batches), Key(config.training.seed, step, micro))
            (output.loss / accumulation).backward()
            losses.append({"loss": output.loss, **output.losses})
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, loader.steps_per_epoch, config.training.epochs)
        optimizer.step()
        optimizer.zero_grad()
        task.end_step()
        history.append(losses)
    return outcome(task, history)


def _zero(rank: int, ranks: int, shards: Path) -> list[Outcome]:
    """20 of the trainer's steps in each way."""
    found = []
    for accumulation, scope, deepspeed in WAYS:
        config = settings(shards, accumulation, scope)
        runtime = Runtime.start(config.training, ROOT / "ds_configs" / f"{deepspeed}.json")
        task, loader = build(config, runtime.process)
        trainer = Trainer(config, task, loader, runtime, Path(), lambda folder: None)
        if deepspeed == "zero2_offload":
            assert isinstance(trainer.engine, ShardedEngine) and trainer.engine._zero.cpu_offload
        else:
            assert isinstance(trainer.engine, LocalEngine if ranks == 1 else ZeroEngine)
        found.append(outcome(task, [trainer.step().losses for _ in range(STEPS)]))
    return found


@pytest.fixture(scope="module")
def plain(shards: Path) -> list[Outcome]:
    """Of the last two ways, whose losses are those of the whole batch, the steps that are not accumulated."""
    at_once, of_micro_batches = (plain_steps(settings(shards, *way[:2])) for way in WAYS[:2])
    return [at_once, of_micro_batches, at_once, at_once]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_zero_2_takes_the_steps_of_plain_adamw(ranks: int, shards: Path, plain: list[Outcome]) -> None:
    found = on_ranks(ranks, _zero, shards)
    for number, way in enumerate(WAYS):
        outcomes = [each[number] for each in found]
        history, student, teacher = plain[number]
        for step, row in enumerate(history):
            for name, value in row.items():
                mean = np.mean([outcome[0][step][name] for outcome in outcomes])
                assert mean == pytest.approx(value, abs=1e-5), (way, step, name)
        for _, theirs, followed in outcomes:
            for mine, others in ((student, theirs), (teacher, followed)):
                for name, tensor in mine.items():
                    np.testing.assert_allclose(others[name], tensor, atol=1e-5, rtol=0, err_msg=name)
