"""Which items meet in a step: global batches cut out of the order, and each rank's share of them.

Global batch g of an epoch holds positions [g*B, (g+1)*B) of the order; the tail that fills no batch is dropped (it is
another one in every epoch). The same samples meet in a step whatever the number of ranks and workers. Where micro-batches are
computed together, a rank's share is a slice of the global batch, and a micro-batch a slice of that; else a micro-batch is a
slice of the global batch, and a rank's share a slice of that, so that the same samples meet in a micro-batch too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2i2.data.loading.order import Order
from m2i2.errors import M2I2Error


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: ``step`` optimizer steps into ``epoch``. All that resuming needs."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank takes, and in how many micro-batches."""

    batch: int
    """Global batch, samples per optimizer step."""
    accumulation: int
    rank: int
    ranks: int
    together: bool = False
    """Whether the losses are those of all micro-batches together; else each micro-batch has its own."""

    def __post_init__(self) -> None:
        if self.batch % (self.accumulation * self.ranks):
            raise M2I2Error(
                f"training.batch={self.batch} does not divide by {self.ranks} ranks x training.accumulation="
                f"{self.accumulation}; choose a multiple of {self.ranks * self.accumulation}."
            )

    @property
    def micro_batch(self) -> int:
        """Samples that this rank sees in one forward pass."""
        return self.batch // (self.accumulation * self.ranks)

    @property
    def passes(self) -> int:
        """Backward passes of a step, as the engine sees them."""
        return 1 if self.together else self.accumulation

    @property
    def remarks(self) -> list[str]:
        """What a user must know of a batch that is shared out like this."""
        if self.ranks == 1 or self.micro_batch > 1:
            return []
        return [
            f"A batch of {self.batch} on {self.ranks} ranks is one sample per rank at a time: the losses are the same, but each "
            f"rank has little to compute between two exchanges. training.batch={8 * self.batch} would give each one eight, and "
            f"ask for another optimizer.lr."
        ]

    def cut(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] of the global batch -> [accumulation, micro_batch] of this rank."""
        if self.together:
            return items.reshape(self.ranks, self.accumulation, self.micro_batch)[self.rank]
        return items.reshape(self.accumulation, self.ranks, self.micro_batch)[:, self.rank]


class StepSampler:
    """Lists of (epoch, item), one per micro-batch of this rank, from ``start`` to the end of the last epoch."""

    def __init__(self, order: Order, share: Share, epochs: int, start: Position) -> None:
        self.order, self.share, self.epochs, self.start = order, share, epochs, start
        if len(order) < share.batch:
            raise M2I2Error(
                f"The data holds {len(order)} items, fewer than one batch of {share.batch}; lower training.batch or add data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return len(self.order) // self.share.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.share
        position = self.start
        while position.epoch < self.epochs:
            for step in range(position.step, self.steps_per_epoch):
                items = self.order.items(position.epoch, step * share.batch, (step + 1) * share.batch)
                for part in share.cut(items):
                    yield [(position.epoch, int(item)) for item in part]
            position = Position(position.epoch + 1, 0)
