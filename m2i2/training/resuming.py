"""Going on from a checkpoint: whether a run may, and its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.options import differences
from m2i2.tasks.task import Task
from m2i2.training.checkpoint import copy_into, read_config, read_run_state, read_tensors
from m2i2.training.engine import Engine

_CHANGEABLE = (
    *("training.max_steps", "training.save_", "training.keep", "training.log_every", "training.log_items"),
    *(
        "training.grace_seconds",
        "training.hang_seconds",
        "training.check_state",
        "training.replay_every",
        "training.spike_sigma",
        "training.on_spike",
        "training.max_nonfinite",
        "training.accumulation",
        "training.kernels",
        "training.compile",
        "training.engine",
        "training.half_weights",
        "training.graphs",
        "training.tf32",
        "training.profile",
    ),
    *("data.workers", "data.shards", "data.max_unreadable", "data.cache_", "start.", "validation.", "monitor."),
    "answering.max_unknown",
)
"""Settings that a resumed run may change (the data's identity is checked by its fingerprint)."""


def state_to_resume(path: Path, config: PretrainingConfig | FinetuningConfig, fingerprint: str) -> dict[str, Any]:
    """The state of a checkpoint; M2I2Error where it is one of other settings or other data than ``fingerprint``'s."""
    state, folder = read_run_state(path), path.parent
    stored = read_config(type(config), path)
    changed = [key for key in differences(stored, config) if not key.startswith(_CHANGEABLE)]
    if changed:
        raise M2I2Error(
            f"{folder} was trained with other settings ({', '.join(changed[:8])}); continue with the same, "
            f"or choose another --output for a new run."
        )
    if state.get("data") != fingerprint:
        raise M2I2Error(
            f"{folder} was trained on other data than these shards; give the same --shards in the same order, "
            f"or choose another --output for a new run."
        )
    return state


def load(path: Path, state: Mapping[str, Any], task: Task, engine: Engine) -> None:
    """Take over the tensors of a checkpoint and its ``state``; M2I2Error where they do not fit. Collective."""
    copy_into(task.student, read_tensors(path / "model.safetensors"), f"{path}/model.safetensors")
    for name, module in task.beside.items():
        copy_into(module, read_tensors(path / f"{name}.safetensors"), f"{path}/{name}.safetensors")
    task.loaded()
    engine.load_moments(read_tensors(path / "optimizer.safetensors"), state["optimizer_steps"])
    if engine.scale and "loss_scale" in state:
        engine.scale.load(state["loss_scale"])
