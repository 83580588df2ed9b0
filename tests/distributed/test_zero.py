"""DeepSpeed ZeRO-2 on any number of ranks takes the steps of plain AdamW in one process without an engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2i2.commands.make_shards import main as make_shards
from m2i2.config import PretrainingConfig, preset
from m2i2.data.corpus import Corpus
from m2i2.models.pretraining import PretrainingModel
from m2i2.training.engine import DEFAULT_CONFIG, complete_config, set_learning_rate, start_engine
from m2i2.training.kernels import choose
from m2i2.training.optimizer import adamw, learning_rate
from m2i2.training.pretraining import PretrainingTask
from m2i2.training.processes import Process, join
from tests.distributed.processes import on_ranks
from tests.distributed.training_runs import loader_of, tokenizer_of
from tests.preloaded import LONG

STEPS = 20 if LONG else 8  # an epoch has 6
ACCUMULATIONS = (1, 2)
Outcome = tuple[list[dict[str, float]], dict[str, np.ndarray], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero") / "captions"
    assert make_shards(["captions", "phantoms", "--output", str(folder), "--count", "96", "--side", "64"]) == 0
    return folder


def settings(shards: Path, accumulation: int) -> PretrainingConfig:
    base = preset("tiny")[0]
    return replace(
        base,
        data=replace(base.data, shards=(str(shards),), workers=0),
        objectives=replace(base.objectives, queue=48),
        # with AdamW's usual 1e-8 a gradient that is zero but for rounding (keys' biases) moves its weight by the learning rate
        optimizer=replace(base.optimizer, lr=1e-4, warmup_epochs=0.0, eps=1e-6),
        training=replace(base.training, batch=16, accumulation=accumulation, epochs=5, precision="float32"),
    )


def take_steps(config: PretrainingConfig, process: Process, *, zero: bool) -> Outcome:
    """Losses (means over ranks and micro-batches) of the steps, and the student's and the teacher's weights after them."""
    corpus = Corpus.open(config.data.shards, "train", "captions")
    loader = loader_of(config, corpus, tokenizer_of(corpus), process)
    torch.manual_seed(0)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, process, torch.float32, 0)
    optimizer = adamw(task.student, config.optimizer, choose(process.device))
    engine: nn.Module = task.student
    if zero:
        engine = start_engine(
            task.student, optimizer, complete_config(DEFAULT_CONFIG, loader.share, 0.0, torch.float32, "built-in")
        )
    history: list[dict[str, float]] = []
    batches = iter(loader)
    accumulation = config.training.accumulation
    for step in range(STEPS):
        lr = learning_rate(config.optimizer, step, loader.steps_per_epoch, config.training.epochs)
        task.begin_step(step, loader.steps_per_epoch)
        sums: dict[str, Tensor] = {}
        for micro in range(accumulation):
            losses = task.losses(engine, next(batches), step, micro)
            if zero:
                set_learning_rate(engine, lr)
                engine.backward(losses["loss"])  # type: ignore[operator]
                engine.step()  # type: ignore[operator]
            else:
                (losses["loss"] / accumulation).backward()
            sums = {name: sums.get(name, torch.zeros(())) + value.detach() / accumulation for name, value in losses.items()}
        if not zero:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        task.end_step()
        history.append({name: float(value) for name, value in sums.items()})
    student = {name: t.detach().numpy() for name, t in task.student.state_dict().items()}
    return history, student, {name: t.numpy() for name, t in task.teacher.state_dict().items()}


def _zero(rank: int, ranks: int, shards: Path) -> dict[int, Outcome]:
    process = join()
    return {n: take_steps(settings(shards, n), process, zero=True) for n in ACCUMULATIONS}


@pytest.fixture(scope="module")
def plain(shards: Path) -> dict[int, Outcome]:
    alone = Process(0, 1, torch.device("cpu"))
    return {n: take_steps(settings(shards, n), alone, zero=False) for n in ACCUMULATIONS}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_zero_2_takes_the_steps_of_plain_adamw(ranks: int, shards: Path, plain: dict[int, Outcome]) -> None:
    found = on_ranks(ranks, _zero, shards)
    for accumulation in ACCUMULATIONS:
        outcomes = [each[accumulation] for each in found]
        history, student, teacher = plain[accumulation]
        for step, row in enumerate(history):
            for name, value in row.items():
                mean = np.mean([outcome[0][step][name] for outcome in outcomes])
                assert mean == pytest.approx(value, abs=1e-5), (accumulation, step, name)
        for _, theirs, followed in outcomes:
            for mine, others in ((student, theirs), (teacher, followed)):
                for name, tensor in mine.items():
                    np.testing.assert_allclose(others[name], tensor, atol=1e-5, rtol=0, err_msg=name)
