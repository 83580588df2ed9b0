"""The DeepSpeed engine around a student, and the optimizer's state by the parameters' names.

DeepSpeed partitions the optimizer's state in flat slices that fit one world size. `Engine.moments` gathers it under the
parameters' names and `Engine.load_moments` partitions it again, so that a checkpoint fits any number of ranks.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2i2.distributed import first_collective
from m2i2.tasks.task import Output
from m2i2.training.deepspeed import private
from m2i2.training.engine import Engine, Moments, or_nan
from m2i2.training.optimizer import MOMENTS, required, steps_done


class _Within(nn.Module):
    """The student as DeepSpeed holds it: its forward is whatever a task computes, so that networks need not know a loss."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        private.prepare_import()
        self.student = student

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class ShardedEngine(Engine):
    """ZeRO-1/2 by DeepSpeed itself, with or without offloading. Rank 0's weights are broadcast to every rank."""

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> None:
        """``student``: float32, on its device. ``config``: as `complete_config` gives it."""
        import deepspeed  # late: joining the process group chooses its accelerator first

        private.prepare_import()
        private.admit(type(optimizer))
        self.student = student
        self._engine, *_ = deepspeed.initialize(
            model=_Within(student), optimizer=optimizer, config=config, dist_init_required=False
        )
        self._zero = self._engine.optimizer
        private.require_zero(self._zero)
        self.remarks = ("Steps are those of DeepSpeed's own engine.", *private.apply_patches())
        self.applied = torch.ones((), dtype=torch.bool, device=next(student.parameters()).device)
        self.limit = torch.full((), torch.inf, device=self.applied.device)
        self._applied = True
        self._gathered: dict[tuple[int, str], Tensor] = {}

    def forward(self, compute: Callable[[], Output]) -> Output:
        """See `Engine.forward`."""
        kept: list[Output] = []

        def loss() -> Tensor:
            kept.append(compute())
            return kept[0].loss

        differentiable = self._engine(loss)
        return kept[0]._replace(loss=differentiable)

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        first_collective.note()  # DeepSpeed sums gradients within the backward pass
        self._engine.backward(or_nan(loss, self.limit))

    def micro_step(self) -> bool:
        """See `Engine.micro_step`."""
        boundary = bool(self._engine.is_gradient_accumulation_boundary())
        self._engine.step()
        if not boundary:
            return False
        self._applied = bool(self._engine.was_step_applied())  # DeepSpeed knows the outcome on the host
        self.applied.fill_(self._applied)
        return True

    @property
    def refused(self) -> bool:
        """See `Engine.refused`."""
        return not self._applied

    def set_learning_rate(self, lr: float) -> None:
        """See `Engine.set_learning_rate`."""
        for group in self._zero.param_groups:
            group["lr"] = lr

    def moments(self) -> Moments | None:
        """See `Engine.moments`."""
        gathered: dict[str, Tensor] = {}
        steps = 0
        inner = private.inner_optimizer(self._zero)
        for group, partition in enumerate(private.masters(self._zero)):
            state = inner.state.get(partition, {})
            if "exp_avg" not in state:
                continue
            steps = steps_done(state, inner.param_groups[group])
            for key in MOMENTS:
                mine = state[key].detach().to(self.applied.device)  # offloaded ones are not where the ranks exchange
                flat = self._gather(mine, (group, key))
                if flat is None:
                    continue
                for name, offset, shape in self._layout(group):
                    gathered[f"{key}.{name}"] = flat[offset : offset + shape.numel()].view(shape)
        return Moments(gathered, steps, live=False) if dist.get_rank() == 0 else None

    def _gather(self, mine: Tensor, place: tuple[int, str]) -> Tensor | None:
        """The slices of all ranks, side by side on the host of rank 0; None elsewhere. The memory is kept for the next time."""
        if dist.get_rank():
            dist.gather(mine, None, dst=0)
            return None
        ranks = dist.get_world_size()
        if place not in self._gathered:
            self._gathered[place] = torch.empty(ranks * mine.numel(), dtype=mine.dtype, pin_memory=mine.device.type == "cuda")
        flat = self._gathered[place]
        pieces = list(flat.chunk(ranks)) if mine.device.type == "cpu" else [torch.empty_like(mine) for _ in range(ranks)]
        dist.gather(mine, pieces, dst=0)
        if mine.device.type != "cpu":
            flat.copy_(torch.cat(pieces))
        return flat

    def own_moments(self) -> list[Tensor]:
        """See `Engine.own_moments`."""
        inner = private.inner_optimizer(self._zero)
        states = [inner.state.get(partition, {}) for partition in private.masters(self._zero)]
        return [state[key] for state in states for key in MOMENTS if key in state]

    def load_moments(self, moments: dict[str, Tensor], steps: int) -> None:
        """See `Engine.load_moments`. The number of ranks may have changed since they were saved.

        The float32 master weights are copied again from the student's weights.
        """
        rank, inner = dist.get_rank(), private.inner_optimizer(self._zero)
        for group, partition in enumerate(private.masters(self._zero)):
            with torch.no_grad():
                partition.copy_(private.own_weights(self._zero, group))
            if not moments:
                continue
            state, size = inner.state[partition], partition.numel()
            state["step"] = torch.tensor(float(steps), device=partition.device)
            inner.param_groups[group]["step"] = steps  # where apex counts
            for key in MOMENTS:
                flat = torch.zeros(size * dist.get_world_size())
                for name, offset, shape in self._layout(group):
                    tensor = required(moments, f"{key}.{name}", name, shape)
                    flat[offset : offset + shape.numel()] = tensor.flatten()
                state[key] = flat[rank * size : (rank + 1) * size].to(partition.device)

    def _layout(self, group: int) -> list[tuple[str, int, torch.Size]]:
        """(name, offset, shape) of every parameter in the flat buffer of a parameter group."""
        names = {id(parameter): name for name, parameter in self.student.named_parameters()}
        return [(names[id(p)], offset, p.shape) for p, offset in private.layout(self._zero, group)]
