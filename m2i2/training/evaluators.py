"""What a run measures on held-out data while it trains, without disturbing the training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from m2i2.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class Measured:
    """The outcome of a measurement."""

    values: dict[str, float]
    """Figures by name, the same on every rank; columns of validation.jsonl."""
    pictures: dict[str, Path] = field(default_factory=dict)
    """Pictures that were written, by what they show; on rank 0."""
    keep: bool = False
    """Whether the model that was measured is worth a checkpoint of its own; the same on every rank."""


class Evaluator(ABC):
    """A measurement on fixed data at intervals. A trainer has a list of them.

    The trainer calls `measure` on every rank after the same step, so that it may use collectives; an evaluator that works on
    rank 0 only must end with a barrier. Data, masks and draws are the same every time; the contrast also depends on the run's
    queue. `undisturbed` keeps the training as it was.
    """

    every: int
    """Optimizer steps between two measurements; 0: none."""

    def due(self, step: int, last: int) -> bool:
        """Whether to measure after ``step``: at intervals, and after the run's ``last`` step."""
        return self.every > 0 and step > 0 and (step % self.every == 0 or step == last)

    def resume(self, checkpoints: Checkpoints, step: int) -> None:
        """Continue a run that has done ``step`` steps."""
        return

    @abstractmethod
    def measure(self, step: int) -> Measured:
        """Measure the model as it is after ``step``. Collective."""

    def conclude(self, checkpoints: Checkpoints) -> None:
        """On rank 0 after `measure`, once the checkpoint that it asked for is complete."""
        return


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Without gradients, in evaluation mode and with random numbers of its own; afterwards all is as before."""
    training = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)
