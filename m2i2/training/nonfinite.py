"""Steps whose loss or gradient is not finite: skipped, named, counted, bounded."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.distributed import max_over_ranks
from m2i2.errors import M2I2Error
from m2i2.training.processes import Process


class _Step(NamedTuple):
    """A step whose outcome is on its way from the device."""

    number: int
    applied: Tensor
    """[] bool, in the host's memory."""
    arrived: torch.cuda.Event | None
    losses: Sequence[Mapping[str, Tensor]]


class NonFiniteGuard:
    """Counts the steps that the engine skipped because the norm of their gradient was not finite.

    A GPU's outcome is read one step later, so that no step waits for it; `settle` reads it at once.
    """

    def __init__(self, limit: int, process: Process, skipped: int = 0) -> None:
        """``limit``: steps in a row that may be skipped; ``skipped``: those of the run so far."""
        self.limit, self.process, self.skipped, self.streak = limit, process, skipped, 0
        self._pending: _Step | None = None

    def add(self, applied: Tensor, losses: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Note whether a step was ``applied`` ([] bool, the same on every rank); M2I2Error after too many that were not.

        ``losses``: those of the step's micro-batches, to name the objective at fault. Collective where one was not applied.
        """
        arrived = None
        if applied.device.type == "cuda":
            applied = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(applied, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.settle()
        self._pending = _Step(step, applied, arrived, losses)
        if arrived is None:
            self.settle()

    def settle(self) -> None:
        """Read the outcome of every step so far. M2I2Error as in `add`; also collective."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.arrived is not None:
            pending.arrived.synchronize()
        if bool(pending.applied):
            self.streak = 0
            return
        self.skipped += 1
        self.streak += 1
        names, step = sorted(pending.losses[0]), pending.number
        bad = torch.stack([torch.stack([~row[name].detach().isfinite() for row in pending.losses]).any() for name in names])
        at_fault = [name for name, flag in zip(names, max_over_ranks(bad.int()).tolist(), strict=True) if flag]
        what = f"the loss {', '.join(n for n in at_fault if n != 'loss') or 'loss'}" if at_fault else "the gradient"
        self.process.say(f"Step {step}: {what} is not finite; the step was skipped ({self.skipped} so far).")
        if self.streak > self.limit:
            raise M2I2Error(
                f"{self.streak} steps in a row up to step {step} were not finite (last: {what}). The weights are those of step "
                f"{step - self.streak}. Start a new run from the last checkpoint (--output NEW start.checkpoint=...) with a lower "
                f"optimizer.lr, with optimizer.clip=1 or with training.precision=float32."
            )
