"""The loss scale of float16: gradients that would vanish in half precision are multiplied, and divided before they are used.

Micikevicius et al., Mixed precision training, 2018, with the constants of PyTorch's GradScaler. Everything stays on the device.
"""

import torch
from torch import Tensor

from m2i2.errors import M2I2Error

_START, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000
HALVINGS = 24
"""Overflows in a row that are normal: from the first scale down to 2^-8."""


def require_one_rank(ranks: int, offloads: bool) -> None:
    """M2I2Error where float16 is not available: the engine of several ranks, and of offloading, has no loss scale."""
    if ranks > 1 or offloads:
        raise M2I2Error(
            "training.precision=float16 needs a loss scale, which several ranks and offloading do not have. Train on one rank "
            "without offloading, or take bfloat16 or float32."
        )


class LossScale:
    """A factor that doubles after 2,000 steps without overflow and halves at each overflow."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _START, device=device)
        self._quiet = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, overflow: Tensor) -> None:
        """After an optimizer step; ``overflow`` is [] float32, 1 where its gradient was not finite."""
        torch._amp_update_scale_(self.value, self._quiet, overflow, _GROWTH, _BACKOFF, _INTERVAL)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps. Waits for the device."""
        return {"value": float(self.value), "quiet_steps": int(self._quiet)}

    def load(self, state: dict[str, float]) -> None:
        """The way back."""
        self.value.fill_(state["value"])
        self._quiet.fill_(int(state["quiet_steps"]))
