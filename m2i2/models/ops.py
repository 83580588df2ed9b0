"""Attention and linear layers as this process computes them: PyTorch's own, until a backend installs its kernels.

Networks call `attention`, `linear` and `Linear` and know no device. `m2i2.backends.choice.install` calls `use` once, at start.
Shapes: B sequences, H heads, L queries, N keys, d wide.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """`attention` by PyTorch's fused kernel."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """`linear` by `F.linear`."""
    return F.linear(F.gelu(x) if gelu else x, weight, bias)


@dataclass
class _Kernels:
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor] = plain_attention
    linear: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = plain_linear


_kernels = _Kernels()


def use(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor] = plain_attention,
    linear: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = plain_linear,
) -> None:
    """Compute with these kernels from now on, in all networks of the process; without arguments, with PyTorch's own."""
    _kernels.attention, _kernels.linear = attention, linear


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(d)) value: [B, H, L, d], [B, H, N, d] twice -> [B, H, L, d].

    ``mask``: boolean, broadcastable to [B, H, L, N], True where a key may be seen. ``dropout``: of the probabilities.
    """
    return _kernels.attention(query, key, value, mask, dropout)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x, or GELU(x), times weight^T plus bias: [..., in], [out, in], [out] -> [..., out]."""
    return _kernels.linear(x, weight, bias, gelu)


class Linear(nn.Linear):
    """`nn.Linear`, optionally of GELU(x)."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias, gelu)
