"""Steps that look wrong (a loss that is not finite, or far above the recent ones) are computed again before anything is decided.

A step has the same bits each time it is computed, so that a second result that differs from the first one is a fault of the
machine: it is named, and the second result counts. The same result again is the data's, or the training's.
"""

import math
import socket
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2i2.config import TrainingConfig
from m2i2.distributed import max_over_ranks
from m2i2.training.engine import Engine
from m2i2.training.lines import StepLines
from m2i2.training.processes import Process

RECORD = "suspicious.jsonl"
"""One line in the run's folder for each step that was computed again."""
Losses = list[dict[str, Tensor]]


class LossBand:
    """The highest loss of a micro-batch that is believed at once, from the losses that the log has read.

    The median of the last readings, plus ``sigma`` times their spread (1.4826 times the median deviation, which is a standard
    deviation for normal numbers), at least 1 % of the median. A micro-batch is noisier than a reading over many by the root of
    their number.
    """

    _FEWEST, _MOST = 16, 64

    def __init__(self, sigma: float, batches: int) -> None:
        """``sigma``: 0 for no band; ``batches``: micro-batches, over steps and ranks, that a reading is the mean of."""
        self._sigma, self._root = sigma, math.sqrt(batches)
        self.readings: deque[float] = deque(maxlen=self._MOST)

    def add(self, loss: object) -> None:
        """Add a reading of the log."""
        if isinstance(loss, float) and math.isfinite(loss):
            self.readings.append(loss)

    @property
    def limit(self) -> float:
        """Infinite without a band, and before there are enough readings."""
        if not self._sigma or len(self.readings) < self._FEWEST:
            return math.inf
        median = statistics.median(self.readings)
        spread = 1.4826 * statistics.median(abs(loss - median) for loss in self.readings)
        return median + self._sigma * self._root * max(spread, 0.01 * abs(median))


class GradientNorms:
    """The norm of this rank's gradient by module, in the backward passes within it."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """``parameters``: what is differentiated, by name; a module is what the first two parts of a name say."""
        self._named = [(".".join(name.split(".")[:2]), p) for name, p in parameters if p.requires_grad]
        self.modules = sorted({module for module, _ in self._named})
        self._sums = dict[str, Tensor]()
        self._hooks: list[Any] = []

    def __enter__(self) -> "GradientNorms":
        self._hooks = [parameter.register_hook(self._adder(module)) for module, parameter in self._named]
        return self

    def _adder(self, module: str) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            square = gradient.detach().float().square().sum()
            self._sums[module] = self._sums[module] + square if module in self._sums else square

        return add

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def read(self) -> list[float]:
        """The norms in the order of ``modules``; waits for the device."""
        return [float(self._sums[module].sqrt()) if module in self._sums else 0.0 for module in self.modules]


class Suspicions:
    """Settles whether a step that was not applied was refused correctly."""

    def __init__(
        self, folder: Path, training: TrainingConfig, engine: Engine, student: nn.Module, process: Process, batches: int
    ) -> None:
        """``batches``: micro-batches that a reading of the log is the mean of."""
        self._path, self._engine, self._student, self._process = folder / RECORD, engine, student, process
        self._policy, self.band = training.on_spike, LossBand(training.spike_sigma, batches)
        self._lines: StepLines | None = None

    def begin(self, done: int) -> None:
        """The run goes on after ``done`` steps."""
        self._lines = StepLines(self._path, done) if self._process.first else None

    def limit(self) -> None:
        """Before a step: let the engine refuse a loss above the band."""
        self._engine.limit.fill_(self.band.limit)

    def doubted(self) -> bool:
        """Whether the step just done was refused, as far as the host knows without waiting; float16 overflows are normal."""
        return self._engine.scale is None and self._engine.refused

    def settle(self, step: int, first: Losses, compute: Callable[[], Losses], items: Sequence[int]) -> tuple[Losses, bool]:
        """Compute step number ``step`` again; its losses, and whether to go back to a checkpoint. Collective.

        ``items``: the step's samples.
        """
        spike = bool(self._engine.limit.isfinite()) and self._over(first)
        with GradientNorms(self._engine.leaves(self._student)) as norms:
            again = compute()
        refused, differ = self._engine.refused, not _same(first, again)
        if spike and refused and self._policy == "keep" and self._over(again):
            self._engine.limit.fill_(math.inf)
            again, refused = compute(), self._engine.refused
        mine = {
            "rank": self._process.rank,
            "host": socket.gethostname(),
            "differs": differ,
            "losses": [_plain(row) for row in first],
            "losses_again": [_plain(row) for row in again],
            "gradient_norm_by_module": dict(zip(norms.modules, map(_number, norms.read()), strict=True)),
        }
        everyones: list[Any] = [None] * self._process.ranks
        dist.all_gather_object(everyones, mine)
        kind = "spike" if spike else "not finite"
        if self._lines:
            row = {"step": step, "kind": kind, "applied": not refused, "items": list(items), "ranks": everyones}
            self._lines.add(row)
        self._say(step, kind, refused, [f"{one['rank']} on {one['host']}" for one in everyones if one["differs"]])
        return again, spike and refused and self._policy == "rollback"

    def _over(self, losses: Losses) -> bool:
        """Whether some rank's loss lies above the band, and all are finite. Collective."""
        own = torch.stack([row["loss"].detach().float().reshape(()) for row in losses])
        flags = torch.stack([(own > self._engine.limit).any(), (~own.isfinite()).any()]).int()
        over, wrong = max_over_ranks(flags).tolist()
        return bool(over and not wrong)

    def _say(self, step: int, kind: str, refused: bool, ranks: list[str]) -> None:
        what = "a loss far above the recent ones" if kind == "spike" else "a loss or gradient that is not finite"
        if ranks:
            outcome = "and has other numbers: " + ("it is skipped" if refused else "the second result counts")
            self._process.say(
                f"Step {step} had {what}; it was computed again {outcome}. A fault of the machine on rank {', '.join(ranks)}; "
                f"see {self._path}."
            )
        elif kind == "spike":
            self._process.say(
                f"Step {step} had {what}, and again when it was computed again (training.on_spike={self._policy}); see "
                f"{self._path}."
            )


def _same(first: Losses, again: Losses) -> bool:
    """Whether two results have the same bits."""
    pairs = [(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a]
    return all(torch.equal(x.float().view(torch.int32), y.float().view(torch.int32)) for x, y in pairs)


def _plain(losses: dict[str, Tensor]) -> dict[str, float | str]:
    return {name: _number(float(value)) for name, value in losses.items()}


def _number(value: float) -> float | str:
    """What JSON can hold."""
    return value if math.isfinite(value) else str(value)
