"""Memory that the ranks of one machine share, and sums of gradients through it, instead of gloo's sockets.

With gloo, ZeRO sends every gradient and every weight through sockets in each step, on the very cores that compute. Where all
ranks see the same /dev/shm, `common_memory` gives them one copy of the weights, of which each updates its own part, and two
slabs per rank in which gradients wait for their owners.
"""

import mmap
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from m2i2.distributed import max_over_ranks, rank, world_size

FOLDER = Path("/dev/shm")
_SLAB = 8_000_000
"""Numbers of a rank's slab: what is exchanged between two barriers."""


class Memory(NamedTuple):
    """float32 memory that every rank sees."""

    parts: list[Tensor]
    """What was asked for."""
    slabs: Tensor
    """Room for an `Exchange`."""


def common_memory(sizes: Sequence[int], slab: int = _SLAB) -> Memory | None:
    """Parts of ``sizes`` numbers, and slabs of ``slab`` numbers, that every rank sees; None where they cannot. Collective."""
    wanted = [*sizes, 2 * world_size() * slab]
    memory = _mapped(sum(wanted))
    if memory is None:
        return None
    *parts, slabs = memory.split(wanted)
    return Memory(parts, slabs)


class Exchange:
    """Sums of gradients at their owners, through two slabs per rank: one is written while others still read the other one."""

    def __init__(self, slabs: Tensor) -> None:
        """``slabs``: of `common_memory`."""
        ranks = world_size()
        self._width = len(slabs) // (2 * ranks * ranks)
        """Numbers for one owner between two barriers."""
        self._slabs = slabs[: 2 * ranks * ranks * self._width].view(2, ranks, ranks, self._width)  # turn, from, to
        self._rank, self._others, self._turn = rank(), [one for one in range(ranks) if one != rank()], 0

    def __call__(self, x: Tensor) -> None:
        """x [ranks, n]: this rank's row becomes the sum of that row over all ranks, own values first. Collective."""
        for columns in x.split(self._width, dim=1):
            slab, width = self._slabs[self._turn], columns.shape[1]
            for owner in self._others:
                slab[self._rank, owner, :width] = columns[owner]
            dist.barrier()  # now all have written, and all have read what was written the time before
            for other in self._others:
                columns[self._rank] += slab[other, self._rank, :width]
            self._turn = 1 - self._turn


def _mapped(numbers: int) -> Tensor | None:
    """float32 [numbers] that every rank sees, or None. Its file is gone before this returns: nothing is left by a kill."""
    path, file, memory = [str(FOLDER / f"m2i2-{uuid.uuid4().hex}")], -1, None
    dist.broadcast_object_list(path, src=0)
    try:
        with suppress(OSError, AttributeError):
            if rank() == 0:
                file = os.open(path[0], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                os.posix_fallocate(file, 0, 4 * numbers)  # a full /dev/shm is an error now, and no bus error later
        dist.barrier()
        with suppress(OSError, ValueError):
            file = file if file >= 0 else os.open(path[0], os.O_RDWR)
            memory = torch.frombuffer(mmap.mmap(file, 4 * numbers), dtype=torch.float32)
        missing = max_over_ranks(torch.tensor(float(memory is None)))
        return None if missing else memory
    finally:
        if file >= 0:
            os.close(file)
        if rank() == 0:
            Path(path[0]).unlink(missing_ok=True)
