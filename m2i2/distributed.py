"""The few collectives that training needs, on gloo or NCCL; with one process they cost nothing."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Concatenate every rank's ``x`` [b, ...] along the first dimension, in rank order: [b * ranks, ...]. No gradient."""
    if world_size() == 1:
        return x
    x = x.contiguous()
    out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_single(out, x)
    return out


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of ``x`` over the ranks, as a new tensor without gradient."""
    if world_size() == 1:
        return x.detach().clone()
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


@torch.no_grad()
def max_over_ranks(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over the ranks, as a new tensor without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks; backwards, their gradients the other way."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, to_me: list[int], from_me: list[int]) -> Tensor:
        ctx.splits = to_me, from_me  # type: ignore[attr-defined]
        received = x.new_empty((sum(to_me), *x.shape[1:]))
        dist.all_to_all_single(received, x.contiguous(), to_me, from_me)
        return received

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        to_me, from_me = ctx.splits  # type: ignore[attr-defined]
        returned = gradient.new_empty((sum(from_me), *gradient.shape[1:]))
        dist.all_to_all_single(returned, gradient.contiguous(), from_me, to_me)
        return returned, None, None


def exchange_rows(x: Tensor, wanted: Tensor) -> Tensor:
    """Rows ``wanted`` of the global batch, of which this rank holds ``x``; the gradient flows back to their owners.

    Only the wanted rows travel. ``x``: [b, ...], the same b and shape on every rank, row i of rank r being row r*b + i
    of the global batch. ``wanted``: [n] int64 global row numbers. Returns [n, ...]. Collective: every rank must call it.
    """
    if world_size() == 1:
        return x.index_select(0, wanted)
    rows_per_rank = x.shape[0]
    order = torch.argsort(wanted, stable=True)
    asked = torch.bincount(wanted // rows_per_rank, minlength=world_size())
    everyones_asked = all_gather(asked.unsqueeze(0))
    asked_of_me = everyones_asked[:, rank()]
    requests_in = wanted.new_empty(int(asked_of_me.sum()))
    requests_out = (wanted % rows_per_rank)[order]
    dist.all_to_all_single(requests_in, requests_out, asked_of_me.tolist(), asked.tolist())
    outgoing = x.index_select(0, requests_in).flatten(1)
    incoming = _AllToAll.apply(outgoing, asked.tolist(), asked_of_me.tolist())
    unsorted = torch.empty_like(order)
    unsorted[order] = torch.arange(len(order), device=order.device)
    return incoming.index_select(0, unsorted).unflatten(1, x.shape[1:])


def digest(tensors: list[Tensor]) -> int:
    """A 63-bit hash of the tensors' bytes, to compare replicas across ranks."""
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(h.digest()[:8], "little") >> 1


def same_on_all_ranks(value: int, device: torch.device | None = None) -> bool:
    """Whether every rank called with the same ``value``. Collective."""
    gathered = all_gather(torch.tensor([value], dtype=torch.int64, device=device))
    return bool((gathered == value).all())
