"""Which items meet in a step: global batches cut out of the order, and each rank's share of them.

Global batch g of an epoch holds positions [g*B, (g+1)*B) of the order. Training drops the tail that fills no batch (it is
another one in every epoch); `EpochSampler` can read it too. The same samples meet in a step whatever the number of ranks and
workers. Where micro-batches are computed together, a rank's share is a slice of the global batch, and a micro-batch a slice of
that; else a micro-batch is a slice of the global batch, and a rank's share a slice of that, so that the same samples meet in a
micro-batch too.
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


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
    """Lists of (epoch, item), one a batch of this rank, from position ``start`` of an epoch to its end.

    The tail that fills no batch is one too, unless ``drop_last``, and is shared out as evenly as possible. A tail of fewer
    samples than ranks joins the batch before it: each rank has as many batches as the others, and none is empty.
    """

    order: Order
    batch: int
    """Samples of a global batch."""
    rank: int
    ranks: int
    drop_last: bool
    epoch: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        """M2I2Error for a batch that the ranks cannot share out, and for data that holds less than one."""
        if self.batch < 1 or self.batch % self.ranks:
            raise M2I2Error(f"batch={self.batch} does not divide by {self.ranks} ranks: it is that of all ranks together.")
        left, least = len(self.order) - self.start, self.batch if self.drop_last else self.ranks
        if len(self.order) < least:
            raise M2I2Error(f"The data holds {len(self.order)} samples; a batch of all ranks needs {least}. Lower batch or ranks.")
        if not self.drop_last and 0 < left < self.ranks:
            raise M2I2Error(
                f"{left} samples of epoch {self.epoch} are left, fewer than {self.ranks} ranks; finish the epoch on at most "
                f"{left} ranks, or leave them out with drop_last=True."
            )

    def __len__(self) -> int:
        """Batches from ``start`` on."""
        full, tail = divmod(len(self.order) - self.start, self.batch)
        return full + (not self.drop_last and tail >= self.ranks)

    def ends(self) -> Iterator[int]:
        """The position of the epoch that each batch ends at."""
        at, total = self.start, len(self.order)
        for number in range(len(self), 0, -1):
            at = total if number == 1 and not self.drop_last else at + self.batch
            yield at

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        at = self.start
        for end in self.ends():
            mine = np.array_split(self.order.items(self.epoch, at, end), self.ranks)[self.rank]
            yield [(self.epoch, int(item)) for item in mine]
            at = end
