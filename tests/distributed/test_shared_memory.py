"""Ranks of one machine sum gradients and share weights through memory; where they cannot, through gloo, to the same end."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from m2i2.backends import shared_memory
from m2i2.backends.choice import choose
from m2i2.config import OptimizerConfig
from m2i2.data.loading.sampling import Share
from m2i2.tasks.task import Output
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, complete_config
from m2i2.training.deepspeed.engine import ShardedEngine
from m2i2.training.optimizer import adamw
from tests.distributed.processes import on_ranks


def _sums(rank: int, ranks: int) -> list[tuple[frozenset[int], np.ndarray, np.ndarray]]:
    """Gradients of every length against a small slab, whole numbers so that sums are exact; (owners, own, total) of each.

    One piece of each turn has two owners.
    """
    memory = shared_memory.common_memory([], slab=10)
    assert memory is not None
    exchange = shared_memory.Exchange(memory.slabs)
    generator = torch.Generator().manual_seed(rank)
    pieces = []
    for turn in range(6):
        made = [
            (frozenset({owner % ranks}), torch.randint(-9, 9, (size,), generator=generator).float(), torch.full((size,), 100.0))
            for owner, size in enumerate((3, 1, 10, 7, 25, 4), start=turn)
        ]
        made[0] = (frozenset({0, ranks - 1}), *made[0][1:])
        before = [(owners, gradient.clone(), total) for owners, gradient, total in made]
        exchange(made)
        pieces += before
    return [(owners, gradient.numpy(), total.numpy()) for owners, gradient, total in pieces]


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_owner_has_the_sum_of_all_ranks(ranks: int) -> None:
    found = on_ranks(ranks, _sums)
    for number, (owners, _, _) in enumerate(found[0]):
        sums = sum(pieces[number][1] for pieces in found)
        for rank, pieces in enumerate(found):
            np.testing.assert_array_equal(pieces[number][2], 100 + sums * (rank in owners), err_msg=f"{number}, {rank}")


def _train(rank: int, ranks: int, stage: int, folder: str) -> tuple[bool, dict[str, np.ndarray], list[str]]:
    """Three steps of a small model on ranks that see ``folder``: whether weights were shared, weights, what is left there."""
    shared_memory.FOLDER = Path(folder)
    torch.manual_seed(rank)  # rank 0's weights count
    model = nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.Linear(70, 9))
    share = Share(rank=rank, ranks=ranks, batch=4 * ranks, accumulation=1)
    config = {**DEFAULT_CONFIG, "zero_optimization": {**DEFAULT_CONFIG["zero_optimization"], "stage": stage}}
    optimizer = adamw(model, replace(OptimizerConfig(), lr=1e-2, eps=1e-6), choose(torch.device("cpu")))
    engine = ShardedEngine(model, optimizer, complete_config(config, share, 0.5, "built-in"))
    data = torch.Generator().manual_seed(7)
    for _ in range(3):
        batch = torch.randn(4 * ranks, 33, generator=data)[rank::ranks]
        output = engine.forward(lambda: Output(model(batch).square().mean(), {}, {}))  # noqa: B023
        engine.backward(output.loss)
        engine.micro_step()
    dist.barrier()
    left = os.listdir(folder) if Path(folder).is_dir() else []
    return engine.shares_memory, {name: t.numpy().copy() for name, t in model.state_dict().items()}, left


@pytest.fixture
def in_memory() -> Iterator[str]:
    """A folder in /dev/shm that no other program uses."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


@pytest.mark.parametrize("stage", [1, 2])
def test_shared_weights_take_the_steps_of_sent_ones(stage: int, tmp_path: Path, in_memory: str) -> None:
    here: list[Any] = on_ranks(2, _train, stage, in_memory)
    sent: list[Any] = on_ranks(2, _train, stage, str(tmp_path / "missing"))
    for (shared, weights, left), (not_shared, others, _) in zip(here, sent, strict=True):
        assert shared and not not_shared
        assert not left, "no file may stay in /dev/shm"
        for name, tensor in weights.items():
            np.testing.assert_allclose(tensor, others[name], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(tensor, here[0][1][name], err_msg="the ranks' weights differ")


def _full(rank: int, ranks: int, folder: str) -> bool:
    shared_memory.FOLDER = Path(folder)
    return shared_memory.common_memory([1 << 50]) is None


def test_memory_that_does_not_fit_is_refused_before_it_is_used(in_memory: str) -> None:
    assert all(on_ranks(2, _full, in_memory))
    assert not os.listdir(in_memory)
