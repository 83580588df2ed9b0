"""What a process trains with: its place among the ranks, the backend, the precision, and DeepSpeed's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2i2.backends.choice import Backend, install
from m2i2.config import TrainingConfig
from m2i2.precision import autocast_dtype
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, read_deepspeed_config
from m2i2.training.processes import Process, join


@dataclass(frozen=True)
class Runtime:
    """Chosen once, at start."""

    process: Process
    backend: Backend
    dtype: torch.dtype
    """Of matrix products."""
    deepspeed: Mapping[str, Any]
    deepspeed_source: str
    """What messages call the configuration."""

    @classmethod
    def start(cls, training: TrainingConfig, deepspeed_config: Path | None = None) -> "Runtime":
        """Join the other ranks and choose kernels and precision; ``deepspeed_config`` is a file, None the built-in ZeRO-2."""
        if deepspeed_config is None:
            config, source = DEFAULT_CONFIG, "the built-in ZeRO-2 configuration"
        else:
            config, source = read_deepspeed_config(deepspeed_config), str(deepspeed_config)
        process = join()
        return cls(process, install(process.device, training), autocast_dtype(training.precision, process.device), config, source)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.process.device

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device.type}. {self.backend}."
