"""The few collectives that training needs, on gloo or NCCL; with one process they cost nothing."""

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from m2i2.errors import M2I2Error

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 without a process group; within a `Tape`, that of the rank whose computation it is."""
    if Tape.current is not None:
        return Tape.current.rank
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


class FirstCollective:
    """When this rank came to its first collective since the last reset: until then it worked on its own."""

    def __init__(self) -> None:
        self._reset, self._first = 0.0, 0.0

    def reset(self) -> None:
        """Wait for the next collective."""
        self._reset, self._first = time.monotonic(), 0.0

    def note(self) -> None:
        """A collective begins."""
        if not self._first:
            self._first = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the reset to the first collective since; 0 where there was none."""
        return max(0.0, self._first - self._reset)


first_collective = FirstCollective()
"""Of this process."""


class Tape:
    """What the collectives of a computation gave a rank. Another rank can do the same computation from it, alone.

    Within it, collectives are recorded; or, where ``received`` is given, nothing is exchanged and they return what it holds.
    """

    current: "Tape | None" = None
    """The one that this process is within."""

    def __init__(self, rank: int, received: Sequence[Tensor] | None = None) -> None:
        """``rank``: whose computation it is. ``received``: what its collectives gave it, in their order."""
        self.rank, self._playing = rank, received is not None
        self.received = list(received or ())
        self.sent: list[Tensor] = []
        """The checksum [2] of what the rank gave to each collective."""

    def __enter__(self) -> "Tape":
        Tape.current = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        Tape.current = None

    def exchange(self, sent: Tensor, collective: Callable[[], Tensor]) -> Tensor:
        """What the collective gives."""
        number = len(self.sent)
        self.sent.append(checksum([sent]))
        if self._playing:
            return self.received[number].clone()
        found = collective()
        self.received.append(found.detach().clone())
        return found


def _exchanged(sent: Tensor, collective: Callable[[], Tensor]) -> Tensor:
    return collective() if Tape.current is None else Tape.current.exchange(sent, collective)


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Concatenate every rank's ``x`` [b, ...] along the first dimension, in rank order: [b * ranks, ...]. No gradient."""
    if world_size() == 1:
        return x
    first_collective.note()
    x = x.contiguous()

    def collective() -> Tensor:
        out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        _gather_into(out, x)
        return out

    return _exchanged(x, collective)


_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The same collective under its present name (torch 2.13) and its older one."""


@torch.no_grad()
def all_gather_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`all_gather` of several tensors with the same number of rows, as one collective of their bytes."""
    if world_size() == 1:
        return list(tensors)
    parts = [x.contiguous().view(len(x), -1).view(torch.uint8) for x in tensors]
    gathered = all_gather(torch.cat(parts, dim=1)).split([part.shape[1] for part in parts], dim=1)
    return [y.contiguous().view(x.dtype).view(-1, *x.shape[1:]) for y, x in zip(gathered, tensors, strict=True)]


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of ``x`` over the ranks, as a new tensor without gradient."""
    if world_size() == 1:
        return x.detach().clone()
    x = x.detach()
    return _exchanged(x, lambda: _reduced(x, dist.ReduceOp.SUM)) / world_size()


@torch.no_grad()
def max_over_ranks(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over the ranks, as a new tensor without gradient."""
    x = x.detach()
    return _exchanged(x, lambda: _reduced(x, dist.ReduceOp.MAX)) if world_size() > 1 else x.clone()


def _reduced(x: Tensor, operation: Any) -> Tensor:
    out = x.clone()
    dist.all_reduce(out, op=operation)
    return out


def _to_all(x: Tensor, to_me: list[int], from_me: list[int]) -> Tensor:
    """The rows that every rank has for this one; ``from_me``: how many of ``x`` go to each, in order."""
    x = x.contiguous()

    def collective() -> Tensor:
        received = x.new_empty((sum(to_me), *x.shape[1:]))
        dist.all_to_all_single(received, x, to_me, from_me)
        return received

    return _exchanged(x, collective)


def handed_on(tensors: Sequence[Tensor], distance: int) -> list[Tensor]:
    """The tensors, of any number and shapes, of the rank that stands ``distance`` before this one, in a ring. Collective."""
    ranks, me = dist.get_world_size(), dist.get_rank()
    everyones: list[Any] = [None] * ranks
    dist.all_gather_object(everyones, [(tensor.shape, tensor.dtype) for tensor in tensors])
    described = everyones[(me - distance) % ranks]
    bytes_to_me, bytes_from_me = [0] * ranks, [0] * ranks
    bytes_to_me[(me - distance) % ranks] = sum(shape.numel() * dtype.itemsize for shape, dtype in described)
    parts = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors]
    bytes_from_me[(me + distance) % ranks] = sum(map(len, parts))
    found = _to_all(torch.cat(parts), bytes_to_me, bytes_from_me).split(
        [shape.numel() * dtype.itemsize for shape, dtype in described]
    )
    return [part.clone().view(dtype).view(shape) for part, (shape, dtype) in zip(found, described, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks; backwards, their gradients the other way."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, to_me: list[int], from_me: list[int]) -> Tensor:
        ctx.splits = to_me, from_me  # type: ignore[attr-defined]
        return _to_all(x, to_me, from_me)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        to_me, from_me = ctx.splits  # type: ignore[attr-defined]
        return _to_all(gradient, from_me, to_me), None, None


class RowExchange:
    """Rows of the global batch that this rank asks the others for: one plan for several requests and tensors.

    Only the wanted rows travel. Collective: every rank makes the plan, and fetches the same things in the same order.
    """

    def __init__(self, wanted: Sequence[Tensor], rows_per_rank: int) -> None:
        """``wanted``: requests [n] of global row numbers; row i of rank r is row r * ``rows_per_rank`` + i."""
        self._wanted = list(wanted)
        self._alone = world_size() == 1
        if self._alone:
            return
        orders = [torch.argsort(request, stable=True) for request in self._wanted]
        asked = torch.stack([torch.bincount(request // rows_per_rank, minlength=world_size()) for request in self._wanted])
        everyones = all_gather(asked.unsqueeze(0)).tolist()  # the plan's one wait for the device
        self._to_me = [[counts[number][rank()] for counts in everyones] for number in range(len(self._wanted))]
        self._from_me = everyones[rank()]
        self._outgoing, self._places = [], []
        for request, order, to_me, from_me in zip(self._wanted, orders, self._to_me, self._from_me, strict=True):
            self._outgoing.append(_to_all((request % rows_per_rank)[order], to_me, from_me))
            places = torch.empty_like(order)
            places[order] = torch.arange(len(order), device=order.device)
            self._places.append(places)

    def fetch(self, number: int, x: Tensor) -> Tensor:
        """The rows of request ``number``, [n, ...], of what every rank holds as ``x`` [rows_per_rank, ...].

        Gradients flow back to the owners of the rows.
        """
        if self._alone:
            return x.index_select(0, self._wanted[number])
        outgoing = x.index_select(0, self._outgoing[number]).flatten(1)
        incoming = _AllToAll.apply(outgoing, self._from_me[number], self._to_me[number])
        return incoming.index_select(0, self._places[number]).unflatten(1, x.shape[1:])


_CHUNK = 1 << 20
"""Words of a checksum that are widened at a time."""


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """A checksum [2] int64 of the tensors' bits, computed where they are: any flipped bit changes it.

    The sum of all 32-bit words, and their sum weighted by an odd number that differs from word to word; both modulo 2^64.
    """
    sums, place, group, held = list[Tensor](), 0, list[Tensor](), 0
    for tensor in tensors:
        for words in _words(tensor.detach()).split(_CHUNK):
            if group and (held + len(words) > _CHUNK or words.device != group[0].device):
                sums.append(_sums(torch.cat(group), place))
                place, group, held = place + held, [], 0
            group.append(words)
            held += len(words)
    if group:
        sums.append(_sums(torch.cat(group), place))
    return torch.stack([one.to(sums[0].device) for one in sums]).sum(0) if sums else torch.zeros(2, dtype=torch.int64)


def _sums(words: Tensor, place: int) -> Tensor:
    """[2] the two sums of words that stand at ``place`` and after it."""
    wide = words.long()
    weights = 2 * torch.arange(place, place + len(wide), device=wide.device) + 1
    return torch.stack([wide.sum(), (wide * weights).sum()])


def _words(x: Tensor) -> Tensor:
    """The bits of ``x`` as int32 numbers of four bytes (or of one, where four do not divide an element)."""
    flat = x.contiguous().flatten()
    return flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.uint8).int()


def same_on_all_ranks(value: Tensor) -> bool:
    """Whether every rank called with the same ``value``. Collective; waits for the device."""
    return bool((all_gather(value.unsqueeze(0)) == value).all())


def on_first_rank(work: Callable[[], T]) -> T:
    """Let rank 0 do ``work`` and give every rank its result, or its error as an M2I2Error. Collective."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (M2I2Error, OSError) as e:
            outcome[1] = str(e)
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise M2I2Error(outcome[1])
    return outcome[0]
