"""Precision: what is computed in half precision, and what never is."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
"""The half-precision types of matrix products."""


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: losses are not computed in half precision."""
    return x.float() if is_half(x) else x


def is_half(x: Tensor) -> bool:
    """Whether ``x`` is in half precision."""
    return x.dtype in HALF


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype`` on ``device``; float32 and float64 leave everything as it is."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype in HALF)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: ``precision`` as asked for, or bfloat16 where the processor or GPU computes in it."""
    if precision in ("bfloat16", "float16"):
        return torch.bfloat16 if precision == "bfloat16" else torch.float16
    if precision == "float32":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if fast else torch.float32
