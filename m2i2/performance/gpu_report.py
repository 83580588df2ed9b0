"""Many measurements one after another, each bounded in time, into one table: what was measured, and what is asked for at least."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from m2i2 import markdown
from m2i2.errors import M2I2Error
from m2i2.files import write_json, write_text
from m2i2.performance.records import card_and_driver
from m2i2.provenance import git_state
from m2i2.terminal import say

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure of a job, and its target."""

    what: str
    key: str
    """Where the job's result holds it."""
    target: float | None
    unit: str
    at_most: bool = False
    """Whether less is better."""
    without_gpu: str = ""
    """Which figure stands in its place where there is no GPU."""


@dataclass(frozen=True)
class Job:
    """A measurement with its lines."""

    name: str
    work: Callable[["Place", float], Found]
    """Measures, within the given seconds; raises M2I2Error where it fails."""
    seconds: float
    """Its limit."""
    lines: tuple[Line, ...] = ()
    needs: str = ""
    """The job whose files it uses."""


@dataclass
class Place:
    """Where a report is made: its folder, and whether it is only tried."""

    output: Path
    quick: bool
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, words: Sequence[str], seconds: float, *, accepted: Collection[int] = (0,), **environment: str) -> str:
        """What a command prints; M2I2Error with its last words where it fails, or is not done in ``seconds``.

        ``accepted``: exit codes that are no failure. Everything it says goes to ``logs/NAME.txt``. On the limit it ends with
        all that it has started.
        """
        log = self.output / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ {' '.join(words)}\n")
        with log.open("a") as out, self.start(words, out, **environment) as process:
            try:
                code = process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                raise M2I2Error(f"it was not done in {seconds:.0f} s (see {log})") from None
            finally:
                end(process)
        text = log.read_text(errors="replace")
        if code not in accepted:
            raise M2I2Error(f"exit code {code}: {_last_words(text)} (see {log})")
        return text

    def start(self, words: Sequence[str], out: Any, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a command in a process group of its own."""
        env = {**os.environ, **self.environment, **environment}
        return subprocess.Popen(
            list(words), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a command that `Place.start` started, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def json_of(text: str, key: str) -> Found:
    """The last JSON object with ``key`` among the lines of a command's output; M2I2Error where there is none."""
    for line in reversed(text.splitlines()):
        if f'"{key}"' in line and "{" in line:
            try:
                found: Found = json.loads(line[line.index("{") :])
            except json.JSONDecodeError:
                continue
            return found
    raise M2I2Error(f"it printed no result: {_last_words(text)}")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    told = [line for line in lines if line.startswith(("error", "torch.OutOfMemoryError", "RuntimeError"))]
    return (told or lines or ["it said nothing"])[-1][:300]


@dataclass(frozen=True)
class Row:
    """A line with its outcome."""

    line: Line
    job: str
    value: float | None
    measured: str
    """The value with its unit, or why there is none."""

    @property
    def target(self) -> str:
        """In words."""
        if self.line.target is None:
            return ""
        return f"{'at most ' if self.line.at_most else ''}{self.line.target:g} {self.line.unit}"

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where nothing was measured or asked for."""
        if self.value is None or self.line.target is None:
            return None
        return self.value <= self.line.target if self.line.at_most else self.value >= self.line.target


def make_report(jobs: Sequence[Job], place: Place, seconds: float, say: Callable[[str], None] = say) -> list[Row]:
    """Do the jobs within ``seconds`` together; returns the rows and keeps the files of the folder up to date after each job."""
    started, rows, failed = time.monotonic(), list[Row](), dict[str, str]()
    for job in jobs:
        left = seconds - (time.monotonic() - started)
        begun = time.monotonic()
        try:
            if job.needs in failed:
                raise M2I2Error(f"it needs {job.needs}, which failed")
            if left < 1:
                raise M2I2Error(f"no time was left of the {seconds:.0f} s of the whole report")
            found = job.work(place, min(job.seconds, left))
        except Exception as e:  # whatever a measurement meets, the next one is made
            failed[job.name] = str(e) or type(e).__name__
            rows += [Row(line, job.name, None, f"failed: {failed[job.name]}") for line in job.lines]
        else:
            rows += [_row(line, job.name, found) for line in job.lines]
        outcome = f"failed: {failed[job.name]}" if job.name in failed else "done"
        say(f"[{time.monotonic() - started:4.0f} s] {job.name}: {outcome} ({time.monotonic() - begun:.0f} s)")
        write(rows, place, seconds=time.monotonic() - started)
    return rows


def _row(line: Line, job: str, found: Found) -> Row:
    key = line.key if line.key in found else line.without_gpu
    if key not in found:
        return Row(
            line, job, None, f"failed: the result has no {line.key}" + ("" if torch.cuda.is_available() else " without a GPU")
        )
    value = float(found[key])
    if key != line.key:  # another quantity: it stands there with its name and is not judged
        return Row(line, job, None, f"{value:.4g} {key} (no GPU)")
    return Row(line, job, value, f"{value:.4g} {line.unit}")


def table(rows: Sequence[Row], place: Place) -> str:
    """The table, below the machine and the commit."""
    card, driver = card_and_driver()
    heads = [f"{card}{f', driver {driver}' if driver else ''}; torch {torch.__version__}; commit {_commit() or 'unknown'}"]
    if place.quick:
        heads.append("--quick: tiny models, one or two steps. The script was tried; these figures are not measurements.")
    cells = [("what", "measured", "at least"), ("---", "---", "---")]
    marks = {True: "", False: " (missed)", None: ""}
    for row in rows:
        mark = "" if place.quick else marks[row.met]
        cells.append((row.line.what, row.measured.replace("|", "/") + mark, row.target))
    widths = [max(len(one[column]) for one in cells) for column in range(3)]
    lines = [markdown.row(f"{cell:<{width}}" for cell, width in zip(one, widths, strict=True)) for one in cells]
    return "\n\n".join([*heads, "\n".join(lines)])


def write(rows: Sequence[Row], place: Place, seconds: float) -> None:
    """report.md, report.csv and report.json."""
    card, driver = card_and_driver()
    columns = ("what", "measured", "value", "unit", "target", "met", "job")
    values = [
        (row.line.what, row.measured, row.value, row.line.unit, row.target, None if place.quick else row.met, row.job)
        for row in rows
    ]
    with (place.output / "report.csv").open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(values)
    whole = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "card": card,
        "driver": driver,
        "torch": torch.__version__,
        "commit": _commit(),
        "quick": place.quick,
        "seconds": round(seconds, 1),
        "lines": [dict(zip(columns, one, strict=True)) for one in values],
    }
    write_json(place.output / "report.json", whole)
    write_text(place.output / "report.md", table(rows, place) + "\n")


def _commit() -> str:
    return os.environ.get("M2I2_COMMIT") or git_state()
