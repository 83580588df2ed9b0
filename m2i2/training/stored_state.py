"""Whether the stored state (weights, moments, teacher, queue) keeps its bits between steps, and is the same on every rank.

A checksum is computed where the state is, at the end of a step and at the beginning of the next one: memory that loses a bit in
between is found before the state is used. Replicas are compared at the end of each step. A flip inside a step, in state that the
step changes, is found by the replicas alone.
"""

import socket

import torch
from torch import Tensor

from m2i2.distributed import all_gather, checksum
from m2i2.errors import M2I2Error
from m2i2.tasks.task import Task
from m2i2.training.engine import Engine
from m2i2.training.processes import Process


class StoredState:
    """The checksums of a run's state. With ``active=False`` it does nothing."""

    def __init__(self, task: Task, engine: Engine, process: Process, *, active: bool) -> None:
        self._task, self._engine, self._process, self._active = task, engine, process, active
        self._sums: Tensor | None = None
        self._replicas = ["weights", *task.beside]

    def begin_step(self, step: int) -> None:
        """Before step number ``step``; M2I2Error where the state is not what the last step left. Waits for the device."""
        if self._sums is None:
            return
        changed = (self._checksums() != self._sums).any(1).tolist()
        if what := [name for name, bad in zip([*self._replicas, "moments"], changed, strict=True) if bad]:
            self._fail(what, f"between the steps {step - 1} and {step}", f"rank {self._process.rank} on {socket.gethostname()}")

    def end_step(self, step: int) -> None:
        """After step number ``step``; M2I2Error where the replicas differ. Collective, and waits for the device."""
        if not self._active:
            return
        self._sums = self._checksums()
        if self._process.ranks == 1:
            return
        everyones = all_gather(self._sums[: len(self._replicas)].unsqueeze(0))
        usual = everyones.mode(0).values  # [replicas, 2], what most ranks have
        wrong = (everyones != usual).any(2)
        if bool(wrong.any()):
            what = [name for name, bad in zip(self._replicas, wrong.any(0).tolist(), strict=True) if bad]
            ranks = [str(rank) for rank, bad in enumerate(wrong.any(1).tolist()) if bad]
            many = self._process.ranks > 2
            self._fail(what, f"in step {step}", f"rank {', '.join(ranks)}" if many else "one of two ranks, it cannot be told which")

    def forget(self) -> None:
        """The state is about to be changed for a reason, such as a checkpoint that is loaded."""
        self._sums = None

    def _checksums(self) -> Tensor:
        """[replicas and moments, 2] int64."""
        modules = {"weights": self._task.student, **self._task.beside}
        groups = [module.state_dict().values() for module in modules.values()]
        device = self._engine.applied.device
        return torch.stack([checksum(group).to(device) for group in (*groups, self._engine.own_moments())])

    def _fail(self, what: list[str], when: str, where: str) -> None:
        raise M2I2Error(
            f"The stored {' and '.join(what)} changed {when} on {where} ({self._process.device}), and no step did it: a fault of "
            f"its memory. The same command resumes from the newest checkpoint; leave that node out if it happens again."
        )
