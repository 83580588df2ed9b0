"""The loss scale of float16: gradients that would vanish in half precision are multiplied, and divided before they are used.

Micikevicius et al., Mixed precision training, 2018, with the constants of PyTorch's GradScaler. Everything stays on the device.
"""

import torch
from torch import Tensor

_START, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000
HALVINGS = 24
"""Overflows in a row that are normal: from the first scale down to 2^-8."""


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
