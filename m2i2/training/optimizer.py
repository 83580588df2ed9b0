"""AdamW, its two parameter groups, and the learning rate of every step."""

import math

import torch
from torch import nn

from m2i2.backends.kernels import Choice, build
from m2i2.config import OptimizerConfig


def adamw(model: nn.Module, config: OptimizerConfig, kernels: Choice) -> torch.optim.Optimizer:
    """AdamW of the given ``kernels``; biases, norms and other one-dimensional parameters do not decay (official; timm's rule)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else free).append(parameter)
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    return build(groups, kernels, lr=config.lr, betas=config.betas, eps=config.eps)


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then half a cosine down to ``final_lr``.

    The official code steps its cosine once an epoch; the paper does not say. Ours moves every step.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
    progress = (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def distillation_ramp(share: float, step: int, steps_per_epoch: int) -> float:
    """Share of the teacher's soft targets at ``step``: linear from 0 over the first epoch (official code)."""
    return share * min(1.0, step / steps_per_epoch)
