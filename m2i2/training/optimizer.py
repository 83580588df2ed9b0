"""AdamW, its two parameter groups, and the learning rate of every step."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from m2i2.backends.choice import Backend
from m2i2.config import OptimizerConfig
from m2i2.errors import M2I2Error

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, beside its step count; its names in checkpoints begin like this."""


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the import of PyTorch's compiler: 4 seconds of a core in every rank.

    PyTorch decorates these two methods so that a compiler leaves them alone, and the decorators import it. No optimizer is
    compiled here, so the undecorated methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))  # not Adam's in PyTorch 2.6


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, as ``params`` and ``weight_decay``: biases, norms and other vectors do not decay (official; timm)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else free).append(parameter)
    return [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def adamw(model: nn.Module, config: OptimizerConfig, backend: Backend) -> torch.optim.Optimizer:
    """AdamW by the kernels of ``backend`` over the parameters of ``model`` that are trained."""
    groups = parameter_groups(model, config.weight_decay)
    return build(groups, backend, lr=config.lr, betas=config.betas, eps=config.eps)


def build(groups: list[dict[str, Any]], backend: Backend, **options: Any) -> torch.optim.Optimizer:
    """AdamW over ``groups`` with ``lr``, ``betas`` and ``eps``."""
    if backend.kernel == "apex":
        from apex.optimizers import FusedAdam

        optimizer: torch.optim.Optimizer = FusedAdam(groups, adam_w_mode=True, **options)
        return optimizer
    return AdamW(groups, fused=backend.kernel == "fused", **options)


def steps_done(state: dict[str, Any], group: dict[str, Any]) -> int:
    """Steps that a parameter's state has seen; apex counts them in the group."""
    return int(state["step"] if "step" in state else group.get("step", 0))


def required(moments: dict[str, Tensor], key: str, name: str, shape: torch.Size) -> Tensor:
    """The moment ``key`` of a checkpoint; M2I2Error where it is missing or of another shape."""
    tensor = moments.get(key)
    if tensor is None or tensor.shape != shape:
        found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise M2I2Error(f"The checkpoint's optimizer state of {name} is {found}; expected {tuple(shape)}.")
    return tensor


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then half a cosine down to ``final_lr``.

    The official code steps its cosine once an epoch; the paper does not say. Ours moves every step.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
    progress = (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
