"""Ranks of one machine sum gradients and share weights through memory; where they cannot, through gloo, to the same end."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from m2i2.backends import shared_memory
from tests.distributed.processes import on_ranks


def _sums(rank: int, ranks: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gradients of every length against a small slab, whole numbers so that sums are exact; before and after."""
    memory = shared_memory.common_memory([], slab=5 * ranks)
    assert memory is not None
    exchange = shared_memory.Exchange(memory.slabs)
    generator = torch.Generator().manual_seed(rank)
    found = []
    for size in (3, 1, 10, 7, 25, 4):
        x = torch.randint(-9, 9, (ranks, size), generator=generator).float()
        before = x.clone()
        exchange(x)
        found.append((before.numpy(), x.numpy()))
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_owner_has_the_sum_of_all_ranks(ranks: int) -> None:
    found = on_ranks(ranks, _sums)
    for number in range(len(found[0])):
        sums = sum(pairs[number][0] for pairs in found)
        for rank, pairs in enumerate(found):
            np.testing.assert_array_equal(pairs[number][1][rank], sums[rank], err_msg=f"{number}, {rank}")


@pytest.fixture
def in_memory() -> Iterator[str]:
    """A folder in /dev/shm that no other program uses."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


def _full(rank: int, ranks: int, folder: str) -> bool:
    shared_memory.FOLDER = Path(folder)
    return shared_memory.common_memory([1 << 50]) is None


def test_memory_that_does_not_fit_is_refused_before_it_is_used(in_memory: str) -> None:
    assert all(on_ranks(2, _full, in_memory))
    assert not os.listdir(in_memory)
