"""What the profiler says of a few measured steps, beside their times: they are steps of their own, because profiling slows them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from m2i2.training.profiling import StepProfiler

STEPS = 3
"""Steps that are recorded."""


def profile_steps(work: Callable[[], object], folder: Path, device: torch.device, *, active: bool = True) -> dict[str, Any]:
    """Do ``work`` a few times more and write the trace into ``folder``; returns the figures of `Activity.per_step` and the file.

    Ranks that are not ``active`` do the same work and record nothing.
    """
    with StepProfiler(folder, STEPS if active else 0, device, wait=0) as profiler:
        for _ in range(profiler.before + STEPS):
            work()
            profiler.step()
    if profiler.activity is None:
        return {}
    return {**profiler.activity.per_step(device), "trace": str(profiler.path)}
