"""Batches that are sent ahead are those that are asked for, in their order, and an error comes where its batch would."""

import time
from collections.abc import Iterator

import pytest
import torch

from m2i2.data.loading.batch import Batch
from m2i2.errors import M2I2Error
from m2i2.training.ahead import Ahead

CPU = torch.device("cpu")


class Loader:
    """Four batches, then an error."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Batch]:
        for number in range(4):
            self.taken += 1
            time.sleep(0.02)
            yield Batch(image=torch.full((2, 3, 4, 4), number, dtype=torch.uint8), item=torch.tensor([number, number]))
        raise M2I2Error("the store does not answer")


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_come_in_order_and_an_error_in_its_place(ahead: bool) -> None:
    loader = Loader()
    batches = Ahead(iter(loader), CPU, ahead=ahead)
    for number in range(4):
        batch = next(batches)
        assert batch.item.tolist() == [number, number] and (batch.image == number).all()
        assert loader.taken == number + 1 and batches.waited >= 0.02, "not farther than asked"
        batches.send()
        batches.send()
        assert loader.taken == min(4, number + 1 + ahead), "one ahead, at most"
    with pytest.raises(M2I2Error, match="does not answer"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_cpu_takes_batches_when_they_are_asked_for() -> None:
    loader = Loader()
    batches = Ahead(iter(loader), CPU)
    batches.send()
    assert loader.taken == 0
