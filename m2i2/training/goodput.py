"""Goodput: the share of a run's wall time in steps that count, over all its starts, and what ate the rest.

Every start appends to ``goodput.jsonl`` of the run. Unlike the log, these lines stay when a run resumes: steps that are done again
were paid for twice. Durations come from the monotonic clock, so that a clock that is set does not change them.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from m2i2.training.lines import StepLines

LEDGER = "goodput.jsonl"
KINDS = {
    "start": "starting: imports, loading, resuming",
    "data": "waiting for data",
    "saves": "saving, while training stood still",
    "validation": "measuring on held-out data",
    "replays": "computing again, to check the machine or to settle a suspicion",
    "skipped": "steps that were skipped",
    "lost": "steps that a later start did again",
}
"""What eats time, and what people call it. ``lost`` is known only once the next start has resumed."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """The time of a run, seconds, over all its starts."""

    wall: float
    """From each start's first instruction to its last line; a start that was killed before its first step has none."""
    spent: dict[str, float]
    """By kind, all of `KINDS`."""
    starts: int
    between: float
    """Between the starts, by the machine's clock; not part of ``wall``, because nobody knows whether the run could have gone on."""

    @property
    def share(self) -> float:
        """Goodput."""
        return max(0.0, self.wall - sum(self.spent.values())) / self.wall if self.wall > 0 else 0.0

    def eaten(self) -> list[tuple[str, float]]:
        """(kind, share of the wall time) of what ate at least a thousandth, the largest first."""
        shares = [(kind, seconds / self.wall) for kind, seconds in self.spent.items() if self.wall > 0]
        return sorted([one for one in shares if one[1] >= 0.001], key=lambda one: -one[1])


def summarise(rows: Iterable[Row]) -> Summary:
    """What the lines of a run's ledger say."""
    starts = [list(group) for _, group in groupby(rows, key=lambda row: row["start"])]
    spent, wall, between = dict.fromkeys(KINDS, 0.0), 0.0, 0.0
    resumed = float("inf")
    """The first step of the earliest later start: what was done beyond it was done again."""
    for number, lines in reversed(list(enumerate(starts))):
        last = lines[-1]
        wall += last["wall"]
        for kind, seconds in last["spent"].items():
            spent[kind] = spent.get(kind, 0.0) + seconds
        spent["lost"] += _useful(last) - _useful_until(lines, resumed)
        resumed = min(resumed, lines[0]["step"])
        if number:
            between += max(0.0, lines[0]["time"] - lines[0]["wall"] - starts[number - 1][-1]["time"])
    return Summary(wall, spent, len(starts), between)


def _useful(row: Row) -> float:
    """Seconds in steps, up to a line of a start."""
    return max(0.0, float(row["wall"]) - sum(row["spent"].values()))


def _useful_until(lines: Sequence[Row], step: float) -> float:
    """Seconds of a start in its steps up to ``step``, between two lines in proportion to the steps."""
    before = lines[0]
    for row in lines:
        if row["step"] > step:
            if step <= before["step"]:
                return _useful(before)
            part = (step - before["step"]) / (row["step"] - before["step"])
            return _useful(before) + part * (_useful(row) - _useful(before))
        before = row
    return _useful(before)


class Goodput:
    """Where the time of this start goes. Rank 0 writes it down; on other ranks nothing is kept."""

    def __init__(
        self, folder: Path, step: int, *, active: bool, clock: Callable[[], float] = time.monotonic, age: float | None = None
    ) -> None:
        """The run goes on after ``step``. ``age``: seconds since the process began (default: asked of the system)."""
        self._clock, self._began = clock, clock() - (process_age() if age is None else age)
        self._active, self._inside = active, list[float]()
        self.spent = dict.fromkeys(KINDS, 0.0)
        self.spent["start"] = clock() - self._began
        self._skipped, self._step, self._useful = 0, step, 0.0
        if active:
            self._lines = StepLines(folder / LEDGER, 1 << 62)
            self._earlier: list[Row] = list(self._lines.rows())
            self._number = 1 + max((int(row["start"]) for row in self._earlier), default=0)
            self._mine: list[Row] = []
            self._write(step)

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Time that goes to ``kind``, less what goes to another kind within it."""
        began = self._clock()
        self._inside.append(0.0)
        try:
            yield
        finally:
            seconds = self._clock() - began
            self.spent[kind] += seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds

    def add(self, kind: str, seconds: float) -> None:
        """So many seconds of a step went to ``kind``."""
        self.spent[kind] += seconds

    def reading(self, step: int, skipped: int) -> dict[str, object]:
        """Note where the start is, and the columns of the log. ``skipped``: steps that this start has skipped so far."""
        useful = self._clock() - self._began - sum(self.spent.values())
        if step > self._step and skipped > self._skipped:  # a skipped step took as long as the others since the last reading
            lost = (useful - self._useful) * min(1.0, (skipped - self._skipped) / (step - self._step))
            self.spent["skipped"] += lost
            useful -= lost
        self._skipped, self._step, self._useful = skipped, step, useful
        if not self._active:
            return {}
        self._write(step)
        found = summarise([*self._earlier, *self._mine])
        return {"goodput": found.share, "goodput_lost_to": dict(found.eaten())}

    def _write(self, step: int) -> None:
        wall = self._clock() - self._began
        spent = {kind: round(seconds, 4) for kind, seconds in self.spent.items() if kind != "lost"}
        row = {"start": self._number, "time": time.time(), "step": step, "wall": round(wall, 4), "spent": spent}
        self._mine = [*self._mine[:1], row]  # no later start yet: the first and the last line say it all
        self._lines.add(row)


def process_age() -> float:
    """Seconds since this process began, imports included; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
