"""What a run writes while it runs: figures as JSON lines, for TensorBoard and the like, and on the terminal."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from m2i2.config import FinetuningConfig, MonitorConfig, PretrainingConfig
from m2i2.distributed import mean_over_ranks
from m2i2.training.display import Display
from m2i2.training.evaluators import Measured
from m2i2.training.lines import StepLines
from m2i2.training.trackers import Tracker, open_trackers


class Averages:
    """Means of scalars since the last reading, kept on the device so that a step never waits for them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None

    def add(self, values: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add the scalars of a micro-batch where it ``counts`` ([] bool). Their names are always the same."""
        self._names = sorted(values)
        row = torch.stack([counts, *(values[name].detach().reshape(()) for name in self._names)]).float()
        row = torch.where(counts, row, 0.0)
        self._sums = row if self._sums is None else self._sums + row

    def read(self) -> dict[str, float]:
        """Means over what was added and over the ranks, and start over. Collective; waits for the device."""
        if self._sums is None:
            return {}
        count, *sums = mean_over_ranks(self._sums).tolist()
        self._sums = None
        return {name: value / count for name, value in zip(self._names, sums, strict=True)} if count else {}


@dataclass
class StepResult:
    """What one optimizer step was."""

    lr: float
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    """Of each micro-batch; ``loss`` is what was differentiated."""
    applied: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))
    """[] bool on the device, whether the weights changed: everything was finite."""
    items: list[Tensor] = field(default_factory=list)
    """[b] sample numbers of each micro-batch."""
    unreadable: tuple[tuple[int, str], ...] = ()
    """(number, reason) of the samples that could not be read."""
    waited: float = 0.0
    """Seconds that the step waited for data."""
    replayed: float = 0.0
    """Seconds that it took to compute the step again, where it looked wrong."""
    flops: float = 0.0
    """Floating-point operations of this rank."""


class Meter:
    """Losses and speed since the last reading."""

    def __init__(self, config: PretrainingConfig | FinetuningConfig, device: torch.device, done_steps: int) -> None:
        self._batch, self._peak_tflops, self._device = config.training.batch, config.monitor.peak_tflops, device
        self._averages = Averages()
        self._start(done_steps)

    def _start(self, step: int) -> None:
        self._since, self._waited, self._step, self._flops = time.monotonic(), 0.0, step, 0.0

    def add(self, result: StepResult) -> None:
        """Add a step. A step that was skipped counts for the speed and not for the losses."""
        self._waited += result.waited
        self._flops += result.flops
        for values in result.losses:
            self._averages.add(values, result.applied)

    def losses(self) -> dict[str, float]:
        """Means over the steps added and over the ranks. Collective; waits for the device."""
        return self._averages.read()

    def speed(self, step: int) -> dict[str, float]:
        """Samples per second, share of the time spent waiting for data, memory, MFU where it is known; then start over."""
        seconds = time.monotonic() - self._since
        found = {
            "samples_per_s": (step - self._step) * self._batch / seconds,
            "data_wait": self._waited / seconds,
            "memory_gib": peak_memory(self._device),
            **utilisation(self._flops / seconds, self._peak_tflops),
        }
        self._start(step)
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started


class RunLog:
    """``log.jsonl`` and ``validation.jsonl`` of a run, its trackers and its display. On ranks other than 0 it does nothing."""

    def __init__(
        self, folder: Path, config: MonitorConfig, settings: dict[str, Any], *, active: bool, total_steps: int, done_steps: int
    ) -> None:
        """The run has done ``done_steps`` of ``total_steps``; their lines stay."""
        self._active = active
        if not active:
            return
        self._log = StepLines(folder / "log.jsonl", done_steps)
        self._validations = StepLines(folder / "validation.jsonl", done_steps)
        self._trackers: list[Tracker] = open_trackers(folder, config, settings, done_steps)
        self._display = Display(folder.name, total_steps, done_steps)

    def __enter__(self) -> "RunLog":
        if self._active:
            self._display.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._active:
            self._display.__exit__(kind, error, trace)
            for tracker in self._trackers:
                tracker.close()

    def write(self, row: Mapping[str, object]) -> None:
        """One line of the log; it holds ``step`` and whatever else was measured."""
        if not self._active:
            return
        self._log.add(row)
        self._display.step(row)
        self._track("training", row)

    def validated(self, step: int, measured: Measured) -> None:
        """The outcome of a validation after ``step``."""
        if not self._active:
            return
        row = {"step": step, **measured.values}
        self._validations.add(row)
        self._display.validated(row)
        self._track("validation", row)
        for tracker in self._trackers:
            for name, path in measured.pictures.items():
                tracker.picture("validation", step, name, path)

    def _track(self, group: str, row: Mapping[str, object]) -> None:
        values = {name: float(value) for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self._trackers:
            tracker.figures(group, int(str(row["step"])), values)


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held so far, GiB.

    Of a GPU: what PyTorch's allocator has reserved, private pools of CUDA graphs included; the CUDA context is not. Without a
    GPU: the resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / (1 << 30)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 30)


def utilisation(flops_per_s: float, peak_tflops: float) -> dict[str, float]:
    """``mfu``: the share of a device's peak that the model's own arithmetic takes; nothing where either is unknown."""
    return {"mfu": flops_per_s / (peak_tflops * 1e12)} if flops_per_s and peak_tflops else {}
