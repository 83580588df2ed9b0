"""A run's figures for other programs: TensorBoard's event files, Weights & Biases."""

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from m2i2.config import MonitorConfig
from m2i2.errors import M2I2Error
from m2i2.files import write_text
from m2i2.training.lines import writing


class Tracker(Protocol):
    """Takes figures and pictures by group (``training``, ``validation``) and step."""

    def figures(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step."""

    def picture(self, group: str, step: int, name: str, path: Path) -> None:
        """A picture of a step."""

    def close(self) -> None:
        """Write what is still held."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run; what a killed run wrote beyond its checkpoint is purged.

    TensorBoard's own thread writes; its error comes back at a later call.
    """

    def __init__(self, folder: Path, done_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder / "tensorboard"
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done_steps + 1 if done_steps else None)

    def figures(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step."""
        with writing(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()

    def picture(self, group: str, step: int, name: str, path: Path) -> None:
        """A picture of a step."""
        import numpy as np
        from PIL import Image

        with writing(self._folder):
            self._writer.add_image(f"{group}/{name}", np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held."""
        with writing(self._folder):
            self._writer.close()


class WandB:
    """A run of Weights & Biases that a resumed training continues; its identity lies in the file ``wandb-id``."""

    def __init__(self, folder: Path, config: MonitorConfig, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as e:
            raise M2I2Error("monitor.wandb needs Weights & Biases: pip install '.[wandb]'.") from e
        name = folder / "wandb-id"
        if not name.exists():
            write_text(name, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=config.wandb_project,
                name=folder.name,
                id=name.read_text().strip(),
                resume="allow",
                dir=str(folder),
                mode=config.wandb,  # type: ignore[arg-type]
                config=settings,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as e:
            raise M2I2Error(
                f"Weights & Biases could not start ({e}). Log in with `wandb login`, or write offline with monitor.wandb=offline."
            ) from e
        self._picture = wandb.Image
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def figures(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step."""
        self._run.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def picture(self, group: str, step: int, name: str, path: Path) -> None:
        """A picture of a step."""
        self._run.log({"step": step, f"{group}/{name}": self._picture(str(path))})

    def close(self) -> None:
        """Write what is still held."""
        self._run.finish()


def open_trackers(folder: Path, config: MonitorConfig, settings: dict[str, Any], done_steps: int) -> list[Tracker]:
    """What ``config`` asks for; M2I2Error where it is not installed or cannot start."""
    found: list[Tracker] = []
    installed = importlib.util.find_spec("tensorboard") is not None
    if config.tensorboard == "on" and not installed:
        raise M2I2Error("monitor.tensorboard=on needs TensorBoard: pip install '.[tensorboard]'.")
    if config.tensorboard != "off" and installed:
        found.append(TensorBoard(folder, done_steps))
    if config.wandb != "off":
        found.append(WandB(folder, config, settings))
    return found
