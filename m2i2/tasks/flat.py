"""Parameters side by side in one buffer, so that one kernel reads or updates all of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

ALIGNMENT = 128
"""Bytes at which every parameter begins: what vectorised kernels and matrix products ask for."""


class Flat:
    """Parameters as views of one buffer, and their gradients as views of another. The space between them is zero."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, parts: int = 1, gradients: bool = True) -> None:
        """Moves the ``parameters``, all of one dtype and device, into the buffer. They stay the objects that they are.

        ``parts``: the buffer divides into so many, of equal length and aligned. ``gradients``: whether they have a buffer.
        """
        self.parameters, self.offsets = list(parameters), list[int]()
        first = self.parameters[0]
        step, size = ALIGNMENT // first.element_size(), 0
        for parameter in self.parameters:
            self.offsets.append(size)
            size += -(-parameter.numel() // step) * step
        size = -(-size // (step * parts)) * step * parts
        self.data = nn.Parameter(first.new_zeros(size))
        if gradients:
            self.data.grad = first.new_zeros(size)
            for parameter, view in zip(self.parameters, self.views(self.data.grad), strict=True):
                parameter.grad = view
        self.move(self.data.detach())

    @property
    def gradient(self) -> Tensor:
        """The gradients' buffer."""
        assert self.data.grad is not None
        return self.data.grad

    @torch.no_grad()
    def move(self, memory: Tensor) -> None:
        """Take the weights to other memory, [as long as `data`]."""
        for parameter, view in zip(self.parameters, self.views(memory), strict=True):
            view.copy_(parameter)
            parameter.data = view
        self.data.data = memory

    def views(self, buffer: Tensor) -> Iterator[Tensor]:
        """The parameters' parts of a buffer like `data`."""
        for parameter, offset in zip(self.parameters, self.offsets, strict=True):
            yield buffer[offset : offset + parameter.numel()].view(parameter.shape)


class Pair(NamedTuple):
    """Two tensors of one shape, of which one follows the other."""

    follower: Tensor
    leader: Tensor


def together(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs as few long ones: those that stand in the same order and at the same distances in both memories are one.

    The space between them, of less than `ALIGNMENT` bytes, is part of it.
    """
    return [_run(group) for group in _groups(pairs, _alike)]


class Runs:
    """What `together` makes of pairs: found once, and again where a tensor has moved that begins or ends a run."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """``pairs``: of parameters, which may be given other memory later."""
        self._pairs, self._runs = list(pairs), list[Pair]()
        self._ends: list[tuple[Tensor, tuple[int, int]]] = []

    def __call__(self) -> list[Pair]:
        """The runs, as `together` gives them."""
        if not self._runs or any(_place(tensor) != place for tensor, place in self._ends):
            groups = _groups(self._pairs, _alike)
            ends = [tensor for group in groups for pair in (group[0], group[-1]) for tensor in pair]
            self._runs, self._ends = [_run(group) for group in groups], [(tensor, _place(tensor)) for tensor in ends]
        return self._runs


def _run(group: Sequence[Pair]) -> Pair:
    """Pairs that stand side by side, as one."""
    first, last = group[0], group[-1]
    if len(group) == 1:
        return Pair(first.follower.detach(), first.leader.detach())
    return Pair(_span(first.follower, last.follower), _span(first.leader, last.leader))


def _alike(before: Pair, after: Pair) -> bool:
    return _distance(before.leader, after.leader) == _distance(before.follower, after.follower)


@torch.no_grad()
def lay_out(pairs: Sequence[Pair]) -> None:
    """Move the followers side by side wherever their leaders are, so that `together` finds them. They stay the objects they are.

    Their dtype, the same for all, may be another one than the leaders'.
    """
    for group in _groups(pairs, lambda before, after: True):
        if len(group) == 1:
            continue
        start = group[0].leader.storage_offset()
        buffer = torch.zeros_like(_span(group[0].leader, group[-1].leader), dtype=group[0].follower.dtype)
        for follower, leader in group:
            offset = leader.storage_offset() - start
            view = buffer[offset : offset + follower.numel()].view(follower.shape)
            view.copy_(follower)
            follower.data = view


def _groups(pairs: Sequence[Pair], fits: Callable[[Pair, Pair], bool]) -> list[list[Pair]]:
    """Pairs whose leaders stand side by side, one after another, as long as each ``fits`` the one before."""
    groups: list[list[Pair]] = []
    for pair in sorted(pairs, key=lambda pair: _place(pair.leader)):
        before = groups[-1][-1] if groups else None
        if before is not None and _distance(before.leader, pair.leader) is not None and fits(before, pair):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _place(x: Tensor) -> tuple[int, int]:
    """Which memory a tensor lies in, and where."""
    return x.untyped_storage()._cdata, int(x.storage_offset())


def _distance(before: Tensor, after: Tensor) -> int | None:
    """Elements from the beginning of one tensor to that of the next; None where they do not stand side by side."""
    (memory, start), (next_memory, next_start) = _place(before), _place(after)
    between = next_start - start - before.numel()
    if memory != next_memory or not (before.is_contiguous() and after.is_contiguous()):
        return None
    return next_start - start if 0 <= between * before.element_size() < ALIGNMENT else None


def _span(first: Tensor, last: Tensor) -> Tensor:
    """Everything from ``first`` to ``last``, as one dimension."""
    size = last.storage_offset() + last.numel() - first.storage_offset()
    return first.detach().as_strided((size,), (1,), first.storage_offset())
