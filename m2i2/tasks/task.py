"""What is trained: a student, its companions outside the engine (teacher, queue), and the loss of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m2i2.data.loading.sampling import Share


class Key(NamedTuple):
    """What everything random about a micro-batch is drawn from, the same on every rank."""

    seed: int
    step: int
    micro: int


class Output(NamedTuple):
    """What a task makes of a micro-batch."""

    loss: Tensor
    """What is differentiated: the weighted sum of the losses."""
    losses: dict[str, Tensor]
    """Each objective's own value, unweighted, for the log."""
    features: dict[str, Tensor]
    """What else came out, detached: for tests and measurements."""


class Task(ABC):
    """What is trained: the student, its companions (teacher, queue), and the losses of a micro-batch."""

    student: nn.Module
    beside: Mapping[str, nn.Module]
    """Modules outside the engine, equal on every rank, saved and loaded with the student."""

    @abstractmethod
    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Before the first micro-batch of an optimizer step: set what depends on its number."""

    def begin_micro_batch(self, key: Key) -> None:
        """Before a micro-batch: set what depends on its key, on the device."""
        return

    @abstractmethod
    def compute(self, batch: Any) -> Output:
        """The losses of a micro-batch, from tensors alone: nothing here depends on the host. Collective."""

    def forward(self, batch: Any, key: Key) -> Output:
        """The losses of a micro-batch. Collective."""
        self.begin_micro_batch(key)
        return self.compute(batch)

    def compute_together(self, batches: Sequence[Any], key: Key, scale: Tensor | None = None) -> Output:
        """The losses of all micro-batches of a step, where its `Share` takes them together. Collective.

        ``scale``: [] what the loss will be multiplied by before it is differentiated, for float16.
        """
        raise NotImplementedError(f"{type(self).__name__} has no losses over several micro-batches.")

    def end_step(self, applied: Tensor | None = None) -> None:
        """After the optimizer's step: the teacher follows the student where it was ``applied``.

        [] bool, which only the device may know: nothing here depends on the host. None means that it was.
        """
        return

    def forget(self) -> None:
        """Drop what an unfinished step has left."""
        return

    def placed(self) -> None:
        """After an engine has given the student's weights their places in memory."""
        return

    def loaded(self) -> None:
        """After the weights were loaded from a checkpoint."""
        return

    def flops(self, batch: Any) -> float:
        """Floating-point operations of a micro-batch's forward and backward pass, for MFU; 0 where they are not counted."""
        return 0.0

    def remarks(self, share: Share) -> list[str]:
        """What a user must know of a run whose batch is cut like this."""
        return []

    def readings(self) -> dict[str, float]:
        """Further figures for the log, such as the temperature."""
        return {}


class Untouched:
    """The parameters that no loss depends on: they are tied to it with a factor of 0.

    All ranks must differentiate the same parameters, and the optimizer expects a gradient of each. Which ones a loss does not reach
    is read off its graph once: an objective must use the same parameters in every step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._found: list[nn.Parameter] | None = None

    def tie(self, loss: Tensor) -> Tensor:
        """``loss`` with every parameter in its graph; its value stays."""
        if loss.grad_fn is None:  # nothing is differentiated
            return loss
        if self._found is None:
            reached = _leaves(loss)
            self._found = [p for p in self._parameters if id(p) not in reached]
        return sum((0 * p.sum() for p in self._found), loss)


def _leaves(x: Tensor) -> set[int]:
    """The ids of the parameters in the graph of ``x``; of a half-precision copy (`m2i2.tasks.copies`), that of its parameter."""
    found, seen, stack = set[int](), set[Any](), [x.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(getattr(variable, "copy_of", variable)))
        stack.extend(following for following, _ in node.next_functions)
    return found


class Ramp:
    """The share of the teacher's soft targets, as a step's number decides it, on the device.

    Where the setting is 0 it is the number 0, and soft targets are not computed.
    """

    def __init__(self, share: float, student: nn.Module) -> None:
        self._share, self._student = share, student
        self.value: float | Tensor = 0.0

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Set `value`; the tensor stays the same one from step to step."""
        if not self._share:
            return
        if not isinstance(self.value, Tensor):
            device = next(self._student.parameters()).device
            self.value = torch.zeros((), dtype=torch.float64, device=device)
        self.value.fill_(distillation_ramp(self._share, step, steps_per_epoch))


def distillation_ramp(share: float, step: int, steps_per_epoch: int) -> float:
    """Share of the teacher's soft targets at ``step``: linear from 0 over the first epoch (official code)."""
    return share * min(1.0, step / steps_per_epoch)


def step_generator_seed(key: Key, rank: int) -> int:
    """The seed of torch's generators (dropout) for a micro-batch on a rank, so that resuming needs no generator state."""
    mixed = 0
    for part in (*key, rank):
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 61)
    return mixed
