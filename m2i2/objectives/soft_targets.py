"""The share of the teacher's soft targets in a loss."""

import torch
from torch import Tensor


def soft_share(distillation: float | Tensor, like: Tensor) -> Tensor | None:
    """The share [] in the dtype and on the device of ``like``; None where it is the number 0, which needs no soft targets."""
    if isinstance(distillation, float) and not distillation:
        return None
    return torch.as_tensor(distillation, dtype=like.dtype, device=like.device)
