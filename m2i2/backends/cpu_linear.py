"""Linear layers that leave little behind for the backward pass of half-precision training on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x, or GELU(x), times weight^T plus bias: [..., in], [out, in], [out] -> [..., out], as `F.linear` has it.

    Autocast keeps a half-precision copy of every weight, and GELU its result, until the backward pass has used them: 0.7 GB
    of a paper-size step. Both are made again there, which costs a hundredth of the step. Elsewhere nothing differs.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and weight.requires_grad:
        made: Tensor = _MadeAgain.apply(x.to(torch.get_autocast_dtype("cpu")), weight, bias, gelu)
        return made
    return F.linear(F.gelu(x) if gelu else x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, optionally of GELU(x)."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias, gelu)


class _MadeAgain(torch.autograd.Function):
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
