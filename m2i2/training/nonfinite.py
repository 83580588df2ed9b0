"""Steps whose loss or gradient is not finite: skipped, named, counted, bounded."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from m2i2.distributed import max_over_ranks
from m2i2.errors import M2I2Error
from m2i2.training.processes import Process


class NonFiniteGuard:
    """Counts the steps that the engine skipped because the norm of their gradient was not finite."""

    def __init__(self, limit: int, process: Process, skipped: int = 0) -> None:
        """``limit``: steps in a row that may be skipped; ``skipped``: those of the run so far."""
        self.limit, self.process, self.skipped, self.streak = limit, process, skipped, 0

    def passed(self, applied: bool, losses: Sequence[Mapping[str, Tensor]], step: int) -> bool:
        """Whether the step was ``applied`` (the same on every rank); M2I2Error after too many that were not.

        ``losses``: those of the step's micro-batches, to name the objective at fault. Collective where not ``applied``.
        """
        if applied:
            self.streak = 0
            return True
        self.skipped += 1
        self.streak += 1
        names = sorted(losses[0])
        bad = torch.stack([torch.stack([~row[name].detach().isfinite() for row in losses]).any() for name in names])
        at_fault = [name for name, flag in zip(names, max_over_ranks(bad.int()).tolist(), strict=True) if flag]
        what = f"the loss {', '.join(n for n in at_fault if n != 'loss') or 'loss'}" if at_fault else "the gradient"
        self.process.say(f"Step {step}: {what} is not finite; the step was skipped ({self.skipped} so far).")
        if self.streak > self.limit:
            raise M2I2Error(
                f"{self.streak} steps in a row up to step {step} were not finite (last: {what}). The weights are those of step "
                f"{step - self.streak}. Start a new run from the last checkpoint (--output NEW start.checkpoint=...) with a lower "
                f"optimizer.lr, with optimizer.clip=1 or with training.precision=float32."
            )
        return False
