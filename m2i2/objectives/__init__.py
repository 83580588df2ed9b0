"""The four objectives, as pure functions of tensors; what is random comes in as an argument."""

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: losses are not computed in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
