"""Sums and copies of flat buffers that are cut into one row for each rank: what ZeRO sends.

x [ranks, n]: row r belongs to rank r. `Rows.sum` is a reduce-scatter, `Rows.share` an all-gather, both in place. How they travel
is decided once, at start, by what the ranks talk through.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from m2i2.backends.shared_memory import Exchange, common_memory
from m2i2.distributed import rank, world_size
from m2i2.tasks.flat import Flat

_SCATTER, _GATHER = (
    ("reduce_scatter_single", "all_gather_single")
    if hasattr(dist, "reduce_scatter_single")
    else ("reduce_scatter_tensor", "all_gather_into_tensor")
)
"""The same collectives under their present names (torch 2.13) or their older ones."""


class Rows(ABC):
    """A way for rows to travel. Every method is collective and works in place."""

    weights_in_memory = False
    """Whether the ranks' weights are one and the same memory."""

    @abstractmethod
    def sum(self, x: Tensor) -> None:
        """This rank's row becomes the sum of that row over all ranks; the other rows are to be used no more."""

    @abstractmethod
    def share(self, x: Tensor) -> None:
        """Every row becomes what it is on the rank that it belongs to."""


class Scattered(Rows):
    """One collective for each call: for NCCL."""

    def sum(self, x: Tensor) -> None:
        """See `Rows.sum`."""
        getattr(dist, _SCATTER)(x[rank()], x.view(-1))

    def share(self, x: Tensor) -> None:
        """See `Rows.share`."""
        getattr(dist, _GATHER)(x.view(-1), x[rank()])


class Reduced(Rows):
    """All-reduces and broadcasts of some numbers at a time: for gloo, also with tensors of a GPU.

    Gloo's gathering into one tensor copies it all once more: 3 s instead of 0.3 per step for 0.9 GB on two ranks of one machine.
    """

    def __init__(self, numbers: int, shared: int) -> None:
        """``numbers`` are summed at a time, ``shared`` are sent."""
        self._numbers, self._shared = numbers, shared

    def sum(self, x: Tensor) -> None:
        """See `Rows.sum`."""
        for part in x.view(-1).split(self._numbers):
            dist.all_reduce(part)

    def share(self, x: Tensor) -> None:
        """See `Rows.share`."""
        for owner, row in enumerate(x):
            for part in row.split(self._shared):
                dist.broadcast(part, owner)


class InMemory(Rows):
    """Through memory that all ranks see, in which the weights are: a rank may write its row of them only after `sum`.

    Nobody reads weights any more then. Sums are those of gloo: own values first, then the other ranks' in their order.
    """

    weights_in_memory = True

    def __init__(self, slabs: Tensor) -> None:
        self._exchange = Exchange(slabs)

    def sum(self, x: Tensor) -> None:
        """See `Rows.sum`."""
        self._exchange(x)

    def share(self, x: Tensor) -> None:
        """Wait until every rank has written its row."""
        dist.barrier()


def rows_of(flats: Sequence[Flat], *, reduce_scatter: bool, numbers: int, shared: int) -> Rows:
    """The best way for the ``flats`` of these ranks, whose weights it may move. Collective.

    ``reduce_scatter``: whether sums may be scattered. ``numbers``, ``shared``: of one collective (see `Reduced`).
    """
    if dist.get_backend() != "gloo":
        return Scattered() if reduce_scatter else Reduced(numbers, shared)
    if all(flat.data.device.type == "cpu" and flat.data.dtype == torch.float32 for flat in flats):
        memory = common_memory([flat.data.numel() for flat in flats])
        if memory is not None:
            for flat, part in zip(flats, memory.parts, strict=True):
                flat.move(part)
            dist.barrier()  # none of these writes comes after a step's
            return InMemory(memory.slabs)
    return Reduced(numbers, shared)


def row_of(x: Tensor) -> Tensor:
    """This rank's row of a flat buffer."""
    return x.view(world_size(), -1)[rank()]
