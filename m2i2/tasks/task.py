"""What is trained: a student, what stands beside it, and what a batch makes of both."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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
    """What is trained: the student, what stands beside it (teacher, queue), and the losses of a micro-batch."""

    student: nn.Module
    beside: Mapping[str, nn.Module]
    """Modules outside the engine, equal on every rank, saved and loaded with the student."""

    @abstractmethod
    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Before the first micro-batch of an optimizer step: what its number decides."""

    @abstractmethod
    def forward(self, batch: Any, key: Key) -> Output:
        """The losses of a micro-batch. Collective."""

    def end_step(self) -> None:
        """After the optimizer's step: the teacher follows the student."""
        return

    def skip_step(self) -> None:
        """In place of `end_step` after a step that was skipped because it was not finite."""
        return

    def loaded(self) -> None:
        """After the weights were loaded from a checkpoint."""
        return

    def flops(self, batch: Any) -> float:
        """Floating-point operations of a micro-batch's forward and backward pass, for MFU; 0 where they are not counted."""
        return 0.0

    def readings(self) -> dict[str, float]:
        """Further figures for the log, such as the temperature."""
        return {}


class Untouched:
    """The parameters that no loss depends on: they are tied to it with a factor of 0.

    All ranks must differentiate the same parameters, and the optimizer expects a gradient of each. Which ones a loss does not reach
    is read off its graph, once: the objectives of a run stay the same.
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
    """The ids of the parameters in the graph of ``x``."""
    found, seen, stack = set[int](), set[Any](), [x.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def distillation_ramp(share: float, step: int, steps_per_epoch: int) -> float:
    """Share of the teacher's soft targets at ``step``: linear from 0 over the first epoch (official code)."""
    return share * min(1.0, step / steps_per_epoch)


def step_generator_seed(key: Key, rank: int) -> int:
    """The seed of torch's generators (dropout) for a micro-batch on a rank, so that resuming needs no generator state."""
    mixed = 0
    for part in (*key, rank):
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 61)
    return mixed


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameter by parameter of the same name."""
    theirs = dict(student.named_parameters())
    mine = dict(teacher.named_parameters())
    torch._foreach_lerp_(list(mine.values()), [theirs[name].detach() for name in mine], 1 - momentum)


def follow(teacher: nn.Module, student: nn.Module) -> None:
    """Give the teacher the student's weights, no gradient, and evaluation mode.

    Teachers are float32 moving averages outside the engine. They run without dropout, so that targets do not depend on ranks; the
    official ``_m`` modules stay in training mode. Without dropout, as in the parity fixtures, both are the same.
    """
    state = student.state_dict()
    teacher.to(next(student.parameters()).dtype)
    teacher.load_state_dict({name: state[name] for name in teacher.state_dict()})
    teacher.eval().requires_grad_(False)
