"""A CPU's own kernels for half precision: attention in plain products, and linear layers that keep little for backward.

Shapes: B sequences, H heads, L queries, N keys, d wide.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.models import ops

IN_CACHE = 2 << 20
"""Bytes of scores that stay in a core's cache while they become probabilities and meet the values."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """As `ops.attention`: in bfloat16 by matrix products, otherwise PyTorch's own kernel."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if mask is None and not dropout:
            attended: Tensor = InPieces.apply(query, key, value)
            return attended
        return _by_products(query, key, value, mask, dropout)
    return ops.plain_attention(query, key, value, mask, dropout)


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same in batched matrix products. In bfloat16 on a CPU the fused kernel takes twice to four times as long."""
    batch, heads = query.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    scores = torch.baddbmm(q.new_empty((1, 1, 1)), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.unflatten(0, (batch, heads)).masked_fill(~mask, -torch.inf).flatten(0, 1)
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return torch.bmm(probabilities, v).unflatten(0, (batch, heads))


class InPieces(torch.autograd.Function):
    """The same products, some heads of one sequence at a time, so that scores are read from cache.

    As a whole the scores of a batch (64 MB in ViT-B at 384 pixels, batch 8) go to memory and back between any two operations,
    which takes two to three times as long. None are kept: the backward pass makes them again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `attention`."""
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value)
        attended, scores = _like_projection(query), _scores(query, key, 2)
        for b, h in _pieces(query, key):
            attended[b, h] = torch.bmm(_probabilities(query[b, h], key[b, h], scores), value[b, h])
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = map(_like_projection, (query, key, value))
        scores, scale = _scores(query, key, 3), query.shape[-1] ** -0.5
        for b, h in _pieces(query, key):
            q, k, v, g = query[b, h], key[b, h], value[b, h], gradients[0][b, h]
            p = _probabilities(q, k, scores)
            of_value[b, h] = torch.bmm(p.transpose(1, 2), g)
            of_p, of_scores = scores[0, : len(q)], scores[2, : len(q)]
            torch.bmm(g, v.transpose(1, 2), out=of_p)
            torch.ops.aten._softmax_backward_data.out(of_p, p, -1, q.dtype, grad_input=of_scores)
            of_query[b, h] = torch.bmm(of_scores, k).mul_(scale)
            of_key[b, h] = torch.bmm(of_scores.transpose(1, 2), q).mul_(scale)
        return of_query, of_key, of_value


def _probabilities(query: Tensor, key: Tensor, scores: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) of a piece, in ``scores[1]``; ``scores[0]`` is overwritten too."""
    found, probabilities = scores[0, : len(query)], scores[1, : len(query)]
    torch.baddbmm(found, query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5, out=found)
    return torch.softmax(found, -1, out=probabilities)


def _scores(query: Tensor, key: Tensor, copies: int) -> Tensor:
    """Room for the scores of a piece, so many times."""
    return query.new_empty(copies, _together(query, key), query.shape[2], key.shape[2])


def _together(query: Tensor, key: Tensor) -> int:
    """Heads whose scores fit the cache of each thread."""
    one = query.shape[2] * key.shape[2] * query.element_size()
    return min(query.shape[1], max(1, IN_CACHE * torch.get_num_threads() // one))


def _pieces(query: Tensor, key: Tensor) -> list[tuple[int, slice]]:
    """A sequence and some of its heads, one after another."""
    step = _together(query, key)
    return [(b, slice(h, h + step)) for b in range(query.shape[0]) for h in range(0, query.shape[1], step)]


def _like_projection(x: Tensor) -> Tensor:
    """An empty tensor [B, H, L, d] that lies in memory as [B, L, H, d], as the projections around attention have it."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """As `ops.linear`.

    Autocast keeps a half-precision copy of every weight, and GELU its result, until the backward pass has used them: 0.7 GB
    of a paper-size step. Both are computed again there, which costs a hundredth of the step.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and weight.requires_grad:
        computed: Tensor = _Recomputed.apply(x.to(torch.get_autocast_dtype("cpu")), weight, bias, gelu)
        return computed
    return ops.plain_linear(x, weight, bias, gelu)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu, ctx.bias_dtype = gelu, bias.dtype
        return F.linear(F.gelu(x) if gelu else x, weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_rows = gradients[0].flatten(0, -2)
        rows = x.flatten(0, -2)
        of_x = (of_rows @ weight.to(x.dtype)).view_as(x)
        if ctx.gelu:
            of_x = torch.ops.aten.gelu_backward(of_x, x)
            rows = F.gelu(rows)
        return of_x, (of_rows.T @ rows).to(weight.dtype), of_rows.sum(0).to(ctx.bias_dtype), None
