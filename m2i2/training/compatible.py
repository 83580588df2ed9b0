"""Whether a checkpoint is one that a run may go on from: of the same settings and the same data."""

from pathlib import Path
from typing import Any

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.options import differences
from m2i2.training.checkpoint import read_config, read_run_state

_CHANGEABLE = (
    *("training.max_steps", "training.save_", "training.keep", "training.log_every", "training.log_items"),
    *(
        "training.grace_seconds",
        "training.max_nonfinite",
        "training.accumulation",
        "training.kernels",
        "training.compile",
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
