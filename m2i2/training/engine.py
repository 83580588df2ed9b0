"""What turns losses into steps of the optimizer: one process alone (`local`), or several that share the work (`deepspeed`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2i2.tasks.task import Output
from m2i2.training.scaling import LossScale


class Moments(NamedTuple):
    """AdamW's state by the parameters' names."""

    tensors: dict[str, Tensor]
    """``{"exp_avg.<parameter>": float32 tensor, ...}``; they hold until `Engine.moments` is called again."""
    steps: int
    live: bool
    """Whether the tensors are those that the next step changes."""


class Engine(ABC):
    """The gradients and the optimizer of one student. Every method is collective."""

    shares_memory: bool = False
    """Whether the ranks' weights are one and the same memory."""
    remarks: tuple[str, ...] = ()
    """What a user must know of this engine."""
    scale: LossScale | None = None
    """Of float16."""
    applied: Tensor
    """[] bool, whether the last optimizer step was applied: its gradient was finite. The same on every rank."""
    limit: Tensor
    """[] float32, on the device: a micro-batch's loss above it is treated as one that is not finite. Infinite by default."""

    @property
    def refused(self) -> bool:
        """Whether the last step was not applied, as far as the host knows without waiting for the device."""
        return self.applied.device.type == "cpu" and not bool(self.applied)

    def leaves(self, student: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """What a backward pass leaves gradients in, by the parameters' names."""
        return student.named_parameters()

    def gradients(self, compute: Callable[[], Output], student: nn.Module) -> tuple[Output, dict[str, Tensor]]:
        """What ``compute`` makes of a micro-batch, and its loss's gradient by the parameters' names.

        Nothing of a step changes. Call it between steps.
        """
        output = compute()
        leaves = [(name, leaf) for name, leaf in self.leaves(student) if leaf.requires_grad]
        found = torch.autograd.grad(output.loss, [leaf for _, leaf in leaves], allow_unused=True)
        return output, {name: gradient for (name, _), gradient in zip(leaves, found, strict=True) if gradient is not None}

    @abstractmethod
    def forward(self, compute: Callable[[], Output]) -> Output:
        """What ``compute`` makes of a micro-batch, its loss ready for `backward`."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Differentiate a micro-batch's loss, and add its gradient to that of the step.

        Where the loss is not finite, its whole gradient becomes NaN, so that the step is skipped.
        """

    @abstractmethod
    def micro_step(self) -> bool:
        """Call after every micro-batch. The optimizer steps after the last one of an optimizer step; returns whether it did."""

    @abstractmethod
    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of every parameter group for the coming step."""

    @abstractmethod
    def moments(self) -> Moments | None:
        """AdamW's moments and its step count, on rank 0; None elsewhere. Before the first step: no moments, and 0 steps."""

    @abstractmethod
    def own_moments(self) -> list[Tensor]:
        """This rank's part of the moments, where it is stored; empty before the first step."""

    @abstractmethod
    def load_moments(self, moments: dict[str, Tensor], steps: int) -> None:
        """Take over gathered moments. The student's weights must be loaded first.

        M2I2Error where one is missing or of another shape.
        """


def or_nan(loss: Tensor, limit: Tensor) -> Tensor:
    """``loss``, with a gradient of NaN where it is above ``limit`` or not finite: an infinite loss may have a finite gradient.

    Decided on the device, without waiting for it.
    """
    value = loss.detach()
    return loss * torch.where(value.isfinite() & (value <= limit), 1.0, torch.nan)
