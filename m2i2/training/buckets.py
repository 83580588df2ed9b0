"""Gradients that autograd has left apart, summed over the ranks a bucket at a time into this rank's rows of the flat buffers.

A bucket [ranks, n] holds n columns of a buffer: as many numbers of every rank's row. It is filled by one call over many tensors,
summed by one collective, and its row is added to the rank's own. Nothing is called for each parameter, in no hook of autograd.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m2i2.tasks.flat import ALIGNMENT, Flat
from m2i2.training.rows import Rows, row_of


@dataclass
class _Bucket:
    rows: Tensor
    """[ranks, n]"""
    target: Tensor
    """[n] of this rank's sums."""
    numbers: list[int] = field(default_factory=list)
    """Whose gradients are in it, by their numbers in the flat buffer."""
    places: list[Tensor] = field(default_factory=list)
    """Where each of them goes: a view in its shape, or flat where it is a part."""
    parts: list[slice | None] = field(default_factory=list)
    """Which part of its flat gradient each one is; None: all of it."""
    gaps: list[Tensor] = field(default_factory=list)
    """What no gradient fills."""
    last: list[int] = field(default_factory=list)
    """Whose gradients are in no later bucket."""


class Buckets:
    """The buckets of one flat buffer. All of them use the same memory, one after another."""

    def __init__(self, flat: Flat, sums: Tensor, memory: Tensor) -> None:
        """``sums``: where this rank's go, [buffer / ranks]. ``memory``: room for a bucket, at least `smallest` numbers."""
        whole = flat.data.detach()
        ranks = whole.numel() // sums.numel()
        step = ALIGNMENT // whole.element_size()
        columns = min(sums.numel(), memory.numel() // (ranks * step) * step)
        self._buckets = list[_Bucket]()
        for start in range(0, sums.numel(), columns):
            width = min(columns, sums.numel() - start)
            bucket = _Bucket(memory[: ranks * width].view(ranks, width), sums[start : start + width])
            for row in range(ranks):
                _fill(bucket, flat, row * sums.numel() + start, bucket.rows[row])
            self._buckets.append(bucket)
        seen = set[int]()
        for bucket in reversed(self._buckets):
            bucket.last = [number for number in dict.fromkeys(bucket.numbers) if number not in seen]
            seen.update(bucket.last)

    @torch.no_grad()
    def sum(self, gradients: list[Tensor | None], rows: Rows, *, first: bool) -> None:
        """Add the ``gradients`` of all ranks to the sums; ``first``: take their place. Collective.

        ``gradients``: of the buffer's parameters in their order; None is 0. They are dropped from this list as they are done.
        """
        for bucket in self._buckets:
            empty, places, found = list(bucket.gaps), list[Tensor](), list[Tensor]()
            for number, place, part in zip(bucket.numbers, bucket.places, bucket.parts, strict=True):
                gradient = gradients[number]
                if gradient is None:
                    empty.append(place)
                else:
                    places.append(place)
                    found.append(gradient if part is None else gradient.reshape(-1)[part])
            if empty:
                torch._foreach_zero_(empty)
            if places:
                torch._foreach_copy_(places, found)
            for number in bucket.last:
                gradients[number] = None
            found.clear()
            rows.sum(bucket.rows)
            own = row_of(bucket.rows)
            if first:
                bucket.target.copy_(own)
            else:
                bucket.target.add_(own)


def smallest(flats: Sequence[Flat], ranks: int) -> int:
    """Numbers of the smallest bucket for any of ``flats``."""
    return max(ranks * (ALIGNMENT // flat.data.element_size()) for flat in flats)


def _fill(bucket: _Bucket, flat: Flat, start: int, row: Tensor) -> None:
    """Plan which gradients go to a ``row`` of a bucket, [n] from ``start`` of the flat buffer."""
    end, filled = start + row.numel(), start
    number = max(0, bisect_right(flat.offsets, start) - 1)
    while number < len(flat.offsets) and flat.offsets[number] < end:
        parameter, offset = flat.parameters[number], flat.offsets[number]
        first, last = max(start, offset), min(end, offset + parameter.numel())
        if first < last:
            if filled < first:
                bucket.gaps.append(row[filled - start : first - start])
            whole = last - first == parameter.numel()
            place = row[first - start : last - start]
            bucket.numbers.append(number)
            bucket.places.append(place.view(parameter.shape) if whole else place)
            bucket.parts.append(None if whole else slice(first - offset, last - offset))
            filled = last
        number += 1
    if filled < end:
        bucket.gaps.append(row[filled - start :])
