"""What a run writes while it runs: one JSON object a line, and a progress bar or plain lines."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from m2i2.distributed import mean_over_ranks
from m2i2.training.lines import StepLines


class Averages:
    """Means of scalars since the last reading, kept on the device so that a step never waits for them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self) -> dict[str, float]:
        """Means over the steps added and over the ranks, and start anew. Collective; waits for the device."""
        if not self._count:
            return {}
        names = sorted(self._sums)
        means = mean_over_ranks(torch.stack([self._sums[n].reshape(()) for n in names]) / self._count).tolist()
        self._sums, self._count = {}, 0
        return dict(zip(names, means, strict=True))


class RunLog:
    """``log.jsonl`` of a run, and its progress on the terminal. On ranks other than 0 it does nothing."""

    def __init__(self, folder: Path, *, active: bool, total_steps: int, done_steps: int) -> None:
        """The run has done ``done_steps`` of ``total_steps``; their lines stay."""
        self._active = active
        if not active:
            return
        self._lines = StepLines(folder / "log.jsonl", done_steps)
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._started, self._first = time.monotonic(), done_steps
        self._total = total_steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("steps", total=total_steps, completed=done_steps, losses="")

    def __enter__(self) -> "RunLog":
        if self._active:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._active:
            self._bar.stop()

    def write(self, row: Mapping[str, object]) -> None:
        """One line of the log; it holds ``step`` and whatever else was measured."""
        if not self._active:
            return
        self._lines.add(row)
        step = int(str(row["step"]))
        losses = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k in _SHOWN)
        self._bar.update(self._task, completed=step, losses=losses)
        if not self._live:
            seconds = (time.monotonic() - self._started) / max(1, step - self._first) * (self._total - step)
            left = f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
            print(f"step {step}/{self._total}  {losses}  {left}", file=sys.stderr, flush=True)


_SHOWN = ("loss", "mim", "mlm", "itm", "itc", "lr", "samples_per_s")
