"""Engines whose weights, gradients and moments are flat buffers, so that a whole update is a few kernels.

They wait for nothing: whether a step is applied is decided on the device. `local` is that of one process alone, `zero` that of
several, each of which steps its part of the buffers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2i2.backends.choice import Backend
from m2i2.config import OptimizerConfig, TrainingConfig
from m2i2.errors import M2I2Error
from m2i2.precision import HALF
from m2i2.tasks.copies import HalfCopies
from m2i2.tasks.flat import Flat
from m2i2.tasks.task import Output
from m2i2.training.engine import Engine, Moments, or_nan
from m2i2.training.optimizer import MOMENTS, build, parameter_groups, required, steps_done
from m2i2.training.runtime import Runtime
from m2i2.training.scaling import LossScale


class Stepped(NamedTuple):
    """A flat buffer, and what this process steps of it."""

    flat: Flat
    part: nn.Parameter
    """All of its data, or a slice of them; its gradient is what the optimizer reads."""
    weight_decay: float


def laid_out(student: nn.Module, weight_decay: float, *, parts: int = 1, gradients: bool = True) -> list[tuple[Flat, float]]:
    """The student's parameters that are trained in flat buffers (see `Flat`), each with its weight decay."""
    groups = [group for group in parameter_groups(student, weight_decay) if group["params"]]
    return [(Flat(group["params"], parts=parts, gradients=gradients), group["weight_decay"]) for group in groups]


class FlatEngine(Engine):
    """AdamW over the flat weights of one student. The weights are the master weights."""

    def __init__(
        self,
        student: nn.Module,
        stepped: Sequence[Stepped],
        config: OptimizerConfig,
        backend: Backend,
        accumulation: int,
        *,
        scaled: bool = False,
    ) -> None:
        """``stepped``: all parameters of ``student`` that are trained. ``accumulation``: backward passes of an optimizer step.

        ``scaled``: whether matrix products are float16, which takes a loss scale.
        """
        self._names = {id(parameter): name for name, parameter in student.named_parameters()}
        self._flats, self._parts = [one.flat for one in stepped], [one.part for one in stepped]
        device = self._parts[0].device
        self._lr = torch.tensor(config.lr, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self._on_device = backend.kernel == "fused"
        """Whether the optimizer takes the outcome and the clipping from the device; the others learn it from the host."""
        self._optimizer = build(
            [{"params": [one.part], "weight_decay": one.weight_decay} for one in stepped],
            backend,
            lr=self._lr if self._on_device else config.lr,
            betas=config.betas,
            eps=config.eps,
            **({"capturable": True} if self._on_device and device.type == "cuda" else {}),
        )
        self._clip, self._accumulation, self._micro = config.clip, accumulation, 0
        self._summands = accumulation
        """Losses of whose mean an optimizer step takes the gradient."""
        self.applied = torch.ones((), dtype=torch.bool, device=device)
        self.limit = torch.full((), torch.inf, device=device)
        self.scale = LossScale(device) if scaled else None
        self.copies: HalfCopies | None = None
        """What matrix products read in place of the weights; None: the weights themselves."""

    _live = True
    """Whether `_gathered` returns what the next step changes."""

    def forward(self, compute: Callable[[], Output]) -> Output:
        """See `Engine.forward`."""
        if self.copies is None:
            return compute()
        if not self._micro:
            self.copies.refresh()
        with self.copies.in_use():
            return compute()

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        loss = or_nan(loss, self.limit)
        loss = loss / self._summands if self._summands > 1 else loss
        loss = loss * self.scale.value if self.scale else loss
        if self.copies is None:
            loss.backward()
        else:
            with self.copies.in_use():
                loss.backward()
        self._collect(first=not self._micro)

    def _collect(self, *, first: bool) -> None:
        """After a backward pass, the ``first`` of the step or a later one: bring its gradients to the buffers."""
        if self.copies is not None:
            self.copies.collect(first=first)

    def gradients(self, compute: Callable[[], Output], student: nn.Module) -> tuple[Output, dict[str, Tensor]]:
        """See `Engine.gradients`."""
        if self.copies is None:
            return super().gradients(compute, student)
        self.copies.refresh()
        with self.copies.in_use():
            return super().gradients(compute, student)

    def leaves(self, student: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """See `Engine.leaves`."""
        copies = self.copies.trained if self.copies else {}
        return [(name, copies.get(id(parameter), parameter)) for name, parameter in student.named_parameters()]

    def micro_step(self) -> bool:
        """See `Engine.micro_step`."""
        self._micro = (self._micro + 1) % self._accumulation
        if not self._micro:
            self._update()
        return not self._micro

    @torch.no_grad()
    def _update(self) -> None:
        """Clip the gradient by its norm, step the optimizer where that is finite, and forget the gradient."""
        gradients = [part.grad for part in self._parts if part.grad is not None]
        norm = self._over_all(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients])))
        self.applied.copy_(norm.isfinite())
        overflow = (~self.applied).to(torch.float32)
        divisor = self._divisor(norm)
        fused = self._on_device and norm.dtype == torch.float32
        if divisor is not None and not fused:
            for one in gradients:
                one.div_(divisor)
        if self._on_device:
            self._optimizer.grad_scale = divisor if fused else None  # type: ignore[attr-defined]
            self._optimizer.found_inf = overflow  # type: ignore[attr-defined]
            self._optimizer.step()
        elif bool(self.applied):
            self._optimizer.step()
        if self.scale:
            self.scale.update(overflow)
        self._forget()

    def _over_all(self, norm: Tensor) -> Tensor:
        """[] the norm of the whole gradient, from that of this process's parts."""
        return norm

    def _forget(self) -> None:
        """Make the gradients 0."""
        for flat in self._flats:
            flat.gradient.zero_()

    def _divisor(self, norm: Tensor) -> Tensor | None:
        """What the gradient of this norm is divided by: the loss scale, and what clipping asks for (as DeepSpeed has it)."""
        if not self._clip:
            return self.scale.value if self.scale else None
        if not self.scale:
            return ((norm + 1e-6) / self._clip).clamp_min(1.0)
        return self.scale.value * ((norm / self.scale.value + 1e-6) / self._clip).clamp_min(1.0)

    def set_learning_rate(self, lr: float) -> None:
        """See `Engine.set_learning_rate`."""
        self._lr.fill_(lr)
        if not self._on_device:
            for group in self._optimizer.param_groups:
                group["lr"] = lr

    def _gathered(self, part: Tensor) -> Tensor | None:
        """What belongs to this process's part of a buffer -> the same of the whole buffer, on rank 0. Collective."""
        return part

    def _own(self, whole: Tensor) -> Tensor:
        """This process's part of a buffer, by itself in memory."""
        return whole

    def _moments(self) -> Moments:
        """As `Engine.moments`; of ranks other than the first it says nothing. Collective."""
        steps, gathered = 0, dict[str, Tensor]()
        for flat, part, group in zip(self._flats, self._parts, self._optimizer.param_groups, strict=True):
            state = self._optimizer.state.get(part, {})
            if "exp_avg" not in state or not steps_done(state, group):
                continue
            steps = steps_done(state, group)
            for key in MOMENTS:
                whole = self._gathered(state[key])
                if whole is None:
                    continue
                for parameter, view in zip(flat.parameters, flat.views(whole), strict=True):
                    gathered[f"{key}.{self._names[id(parameter)]}"] = view
        return Moments(gathered, steps, live=self._live)

    def own_moments(self) -> list[Tensor]:
        """See `Engine.own_moments`."""
        states = [self._optimizer.state.get(part, {}) for part in self._parts]
        return [state[key] for state in states for key in MOMENTS if key in state]

    def load_moments(self, moments: dict[str, Tensor], steps: int) -> None:
        """See `Engine.load_moments`."""
        if not moments:
            return
        for flat, part, group in zip(self._flats, self._parts, self._optimizer.param_groups, strict=True):
            state = self._optimizer.state[part]
            state["step"] = torch.tensor(float(steps), device=part.device if self._on_device else "cpu")
            group["step"] = steps  # where apex counts
            for key in MOMENTS:
                whole = torch.zeros_like(flat.data)
                for parameter, view in zip(flat.parameters, flat.views(whole), strict=True):
                    name = self._names[id(parameter)]
                    view.copy_(required(moments, f"{key}.{name}", name, parameter.shape))
                state[key] = self._own(whole)


def keep_copies(engine: Engine, modules: Sequence[nn.Module], training: TrainingConfig, runtime: Runtime) -> None:
    """Give ``engine`` half-precision copies of the weights of ``modules``, where the settings and the device ask for them.

    The weights have their places in memory. M2I2Error where copies are asked for and cannot be kept.
    """
    possible = runtime.dtype in HALF and isinstance(engine, FlatEngine)
    if training.half_weights == "on" and not possible:
        raise M2I2Error(
            "training.half_weights=on needs training.precision=bfloat16 or float16, and not DeepSpeed's own engine "
            "(training.engine, offloading); training.half_weights=auto keeps copies where it can."
        )
    wanted = training.half_weights == "on" or (training.half_weights == "auto" and runtime.device.type == "cuda")
    if wanted and possible and isinstance(engine, FlatEngine):
        engine.copies = HalfCopies(modules, runtime.dtype)
        name = str(runtime.dtype).removeprefix("torch.")
        engine.remarks += (f"Matrix products read {name} copies of the weights, refreshed once per step.",)
