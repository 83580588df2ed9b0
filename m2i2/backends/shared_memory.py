"""Ranks of one machine exchange gradients and weights through memory that they share, instead of gloo's sockets.

With gloo, ZeRO sends every gradient and every weight through sockets in each step, on the very cores that compute. Where all
ranks see the same /dev/shm, `share` gives them one copy of the weights, of which each updates its own part, and two slabs a
rank in which gradients wait for their owner.
"""

import mmap
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2i2.distributed import max_over_ranks, rank, world_size

_FOLDER = Path("/dev/shm")
_SLAB = 8_000_000
"""Numbers of a rank's slab: what is exchanged between two barriers."""


def share(zero: Any) -> bool:
    """Let the ranks of a ZeRO-1/2 optimizer over float32 weights share memory; False where they cannot. Collective.

    Sums are those of gloo: own values first, then the other ranks' in their order. What was one weight per rank becomes the same
    weight for all, so that a rank may write its part only between the last exchange of a step, when nobody reads weights any
    more, and `finish_step`.
    """
    flats: list[Tensor] = zero.bit16_groups_flat
    plain = all(flat.dtype == torch.float32 and flat.device.type == "cpu" for flat in flats) and not zero.cpu_offload
    if world_size() == 1 or not plain:
        return False
    sizes = [*(flat.numel() for flat in flats), 2 * world_size() * _SLAB]
    memory = _common_memory(sum(sizes))
    if memory is None:
        return False
    *parts, slabs = memory.split(sizes)
    for group, (part, flat) in enumerate(zip(parts, flats, strict=True)):
        if rank() == 0:
            part.copy_(flat)
        zero.bit16_groups_flat[group] = part
        zero._update_model_bit16_weights(group)
        zero.parallel_partitioned_bit16_groups[group] = zero.get_data_parallel_partitions(part, group)
    dist.barrier()
    exchange = _Exchange(slabs)

    def reduce(bucket: Sequence[tuple[Any, Tensor, Tensor | None]], *_: Any, **__: Any) -> None:
        exchange([(next(iter(owners)), gradient, total) for owners, gradient, total in bucket])

    zero.allreduce_and_scatter = reduce
    return True


def finish_step(**_: Any) -> None:
    """DeepSpeed's ``all_gather_dp_groups`` where weights are shared: wait until every rank has updated its part."""
    dist.barrier()


class _Exchange:
    """Sums of gradients at their owners, through two slabs a rank: one is written while others still read the other one."""

    def __init__(self, memory: Tensor) -> None:
        self._slabs = memory.view(2, world_size(), -1)
        self._rank, self._turn = rank(), 0

    def __call__(self, pieces: Sequence[tuple[int, Tensor, Tensor | None]]) -> None:
        """(owner, gradient [n], where the owner accumulates [n] or None); gradients become sums at their owners."""
        load: list[tuple[int, Tensor, Tensor | None, int]] = []
        filled, capacity = 0, self._slabs.shape[-1]
        for owner, gradient, total in pieces:
            for start in range(0, gradient.numel(), capacity):
                part = slice(start, start + capacity)
                one = gradient[part]
                if filled + one.numel() > capacity:
                    self._round(load)
                    load, filled = [], 0
                load.append((owner, one, None if total is None else total[part], filled))
                filled += one.numel()
        self._round(load)

    def _round(self, load: Sequence[tuple[int, Tensor, Tensor | None, int]]) -> None:
        slabs = self._slabs[self._turn]
        for owner, gradient, _, offset in load:
            if owner != self._rank:
                slabs[self._rank, offset : offset + gradient.numel()] = gradient
        dist.barrier()  # now all have written, and all have read what was written the time before
        for owner, gradient, total, offset in load:
            if owner == self._rank:
                for other in range(len(slabs)):
                    if other != owner:
                        gradient += slabs[other, offset : offset + gradient.numel()]
                if total is not None:
                    total += gradient
        self._turn = 1 - self._turn


def _common_memory(numbers: int) -> Tensor | None:
    """float32 [numbers] that every rank sees, or None. Its file is gone before this returns: nothing is left by a kill."""
    path, file, memory = [str(_FOLDER / f"m2i2-{uuid.uuid4().hex}")], -1, None
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
