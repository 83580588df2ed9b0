"""Which engine trains: that of one rank, that of several, or DeepSpeed's own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from m2i2.config import OptimizerConfig, TrainingConfig
from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.training.deepspeed.configuration import Partitioning, complete_config, for_deepspeed_alone, offloads
from m2i2.training.deepspeed.engine import ShardedEngine
from m2i2.training.engine import Engine
from m2i2.training.local import LocalEngine
from m2i2.training.optimizer import adamw
from m2i2.training.runtime import Runtime
from m2i2.training.zero import ZeroEngine


def make_engine(student: nn.Module, optimizer: OptimizerConfig, training: TrainingConfig, runtime: Runtime, share: Share) -> Engine:
    """The engine around ``student``, which is on its device. Collective; M2I2Error where the settings contradict each other."""
    deepspeed = complete_config(runtime.deepspeed, share, optimizer.clip, runtime.deepspeed_source)
    scaled = runtime.dtype == torch.float16
    kind = choose(training.engine, deepspeed, runtime.deepspeed_source, share.ranks, scaled=scaled)
    if kind == "local":
        return LocalEngine(student, optimizer, runtime.backend, share.passes, scaled=scaled)
    if kind == "zero":
        return ZeroEngine(student, optimizer, runtime.backend, share.passes, Partitioning.of(deepspeed), scaled=scaled)
    steps_by = replace(runtime.backend, kernel="fused") if offloads(deepspeed) else runtime.backend  # apex steps on GPUs only
    return ShardedEngine(student, adamw(student, optimizer, steps_by), deepspeed)


def choose(
    wanted: str, deepspeed: Mapping[str, Any], source: str, ranks: int, *, scaled: bool
) -> Literal["local", "zero", "deepspeed"]:
    """The engine for ``ranks`` of them; one alone pays for nothing.

    ``wanted``: training.engine. ``deepspeed``: a completed configuration, from ``source``. ``scaled``: whether it is float16.
    """
    reason = for_deepspeed_alone(deepspeed)
    if wanted == "flat" and reason:
        raise M2I2Error(
            f"{source} asks for {reason}, which only DeepSpeed's own engine does. Remove it, or take training.engine=auto."
        )
    if wanted != "deepspeed" and ranks == 1 and not offloads(deepspeed):
        return "local"
    if wanted != "deepspeed" and not reason:
        return "zero"
    if scaled:
        raise M2I2Error(
            f"training.precision=float16 needs a loss scale, which DeepSpeed's own engine does not have here (it is chosen by "
            f"{reason or 'training.engine=deepspeed'}). Leave that out, or take bfloat16 or float32."
        )
    return "deepspeed"
