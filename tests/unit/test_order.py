"""The order is a permutation in every epoch, starts anywhere, and depends on seed, epoch and data alone."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2i2.data.loading.order import Order


@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    window=st.integers(1, 40),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 50),
)
def test_every_item_comes_exactly_once_an_epoch(shards: list[int], window: int, seed: int, epoch: int) -> None:
    order = Order(np.array(shards), "data", seed, window)
    assert sorted(order.items(epoch, 0, len(order)).tolist()) == list(range(sum(shards)))


@given(cut=st.integers(0, 200))
def test_starting_anywhere_continues_the_same_order(cut: int) -> None:
    whole = Order(np.array([50, 7, 93, 50]), "data", 3, 2).items(4, 0, 200)
    assert Order(np.array([50, 7, 93, 50]), "data", 3, 2).items(4, cut, 200).tolist() == whole[cut:].tolist()


def test_seed_epoch_and_data_change_the_order() -> None:
    def first(seed: int, epoch: int, data: str) -> list[int]:
        return Order(np.full(10, 100), data, seed, 4).items(epoch, 0, 1000).tolist()

    assert first(0, 0, "a") == first(0, 0, "a")
    assert len({tuple(first(*key)) for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]}) == 4


def test_items_mix_across_the_shards_of_a_window_and_across_windows_over_epochs() -> None:
    order = Order(np.full(8, 100), "data", 0, 4)
    shards = order.items(0, 0, 400) // 100
    assert len(set(shards.tolist())) == 4
    assert len(set(shards[:40].tolist())) == 4, "the first items come from all shards of the window"
    windows = {frozenset((order.items(epoch, 0, 400) // 100).tolist()) for epoch in range(10)}
    assert len(windows) > 1


def test_an_order_travels_to_worker_processes() -> None:
    order = Order(np.array([5, 6]), "data", 1, 1)
    assert pickle.loads(pickle.dumps(order)).items(2, 0, 11).tolist() == order.items(2, 0, 11).tolist()


def test_positions_outside_the_epoch_are_refused() -> None:
    with pytest.raises(IndexError):
        Order(np.array([5]), "data", 0, 1).items(0, 3, 6)


def test_a_hundred_million_items_start_at_once() -> None:
    order = Order(np.full(100_000, 1000), "data", 0, 16)
    middle = order.items(0, 50_000_000, 50_000_064)
    assert len(set(middle.tolist())) == 64
