"""Guards of a run: steps whose loss or gradient is not finite, and samples that cannot be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2i2.distributed import max_over_ranks
from m2i2.errors import M2I2Error
from m2i2.training.lines import StepLines
from m2i2.training.processes import Process


def poisoned_if_not_finite(loss: Tensor) -> Tensor:
    """The same loss; where it is not finite, its whole gradient becomes NaN, so that the engine skips the step.

    An infinite loss may have a finite gradient. Decided on the device, without waiting for it.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


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
                f"{step - self.streak}. Resume with a lower optimizer.lr, with optimizer.clip=1 or with "
                f"training.precision=float32, in a new --output started from the last checkpoint (start.checkpoint=...)."
            )
        return False


class UnreadableSamples:
    """The samples that training could not read: listed in ``unreadable.jsonl`` of the run, counted, bounded."""

    def __init__(self, folder: Path, share: float, corpus_items: int, process: Process, done_steps: int) -> None:
        """The run has done ``done_steps`` steps; what it found unreadable in them counts."""
        self.path, self.share, self.corpus_items, self.process = folder / "unreadable.jsonl", share, corpus_items, process
        self._lines = StepLines(self.path, done_steps) if process.first else None
        shared: list[Any] = [sorted({int(row["item"]) for row in self._lines.rows()}) if self._lines else None]
        dist.broadcast_object_list(shared, src=0)
        self.items: set[int] = set(shared[0])

    def add(self, step: int, mine: Sequence[tuple[int, str]]) -> None:
        """Add what the ranks found in ``step``. Collective; M2I2Error when more than the allowed share is unreadable."""
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, list(mine))
        found = [entry for entries in everyones for entry in entries]
        fresh = [(item, reason) for item, reason in found if item not in self.items]
        self.items.update(item for item, _ in found)
        if self._lines:
            self._lines.add(*({"step": step, "item": item, "reason": reason} for item, reason in found))
        for _, reason in fresh[:3]:
            self.process.say(f"Unreadable, replaced by another sample ({len(self.items)} so far, see {self.path}): {reason}")
        if len(self.items) > self.share * self.corpus_items:
            raise M2I2Error(
                f"{len(self.items)} of {self.corpus_items} samples cannot be read, more than data.max_unreadable={self.share:g}; "
                f"{self.path} lists them. The last: {found[-1][1]} Mend the shards, or raise data.max_unreadable."
            )
