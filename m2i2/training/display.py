"""The run on the terminal: a live table with the losses' courses, or plain lines where there is no terminal."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from m2i2.terminal import say

_READINGS = (
    *("step", "epoch", "lr", "temperature", "distillation", "samples_per_s", "data_wait", "memory_gib", "mfu"),
    *("skipped_steps", "unreadable", "goodput", "goodput_lost_to", "slowest_rank", "slowest_by"),
)
"""Columns of the log that are not losses."""
_BARS = "▁▂▃▄▅▆▇█"
_SLOW = 1.2
"""Times the other ranks' time from which a rank is shown as the slowest."""
_COURSE = 40
"""Readings that a course shows."""
Row = Mapping[str, object]


class Display:
    """What stands on the terminal while a run goes on: `step` after every reading, `validated` after every validation."""

    def __init__(self, title: str, total_steps: int, done_steps: int) -> None:
        self._console = Console(stderr=True)
        self._title, self._total, self._first, self._step = title, total_steps, done_steps, done_steps
        self._started = time.monotonic()
        self._courses: dict[str, deque[float]] = {}
        self._row: Row = {}
        self._validation = ""
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=done_steps)
        # a program's own prints appear above the table
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def step(self, row: Row) -> None:
        """A row of the log."""
        self._row, self._step = row, int(str(row["step"]))
        for name in losses_of(row):
            if isinstance(value := row.get(name), float):
                self._courses.setdefault(name, deque(maxlen=_COURSE)).append(value)
        self._bar.update(self._task, completed=self._step)
        if not self._console.is_terminal:
            losses = "  ".join(f"{name} {course[-1]:.4g}" for name, course in self._courses.items())
            figures = "  ".join(f"{name} {text}" for name, text in figures_of(row))
            say(f"step {self._step}/{self._total}  {losses}  {figures}  {self._left()}", file=sys.stderr, flush=True)

    def validated(self, row: Row) -> None:
        """A row of the validation's log."""
        self._validation = f"validation at step {row['step']}: {validation_text(row)}"
        if not self._console.is_terminal:
            say(self._validation, file=sys.stderr, flush=True)

    def _left(self) -> str:
        """How long the rest will take at the mean pace of this start."""
        if self._step == self._first:
            return ""
        seconds = (time.monotonic() - self._started) / (self._step - self._first) * (self._total - self._step)
        if seconds >= 5400:
            return f"{seconds / 3600:.1f} h left"
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def _render(self) -> RenderableType:
        losses = Table.grid(padding=(0, 2))
        for name, course in self._courses.items():
            start = Text(f"from {course[0]:.4g}", style="dim")
            losses.add_row(name, Text(f"{course[-1]:.4g}"), Text(course_of(course), style="cyan"), start)
        figures = Table.grid(padding=(0, 2))
        for name, text in figures_of(self._row):
            figures.add_row(Text(name, style="dim"), Text(text))
        both = Table.grid(padding=(0, 4))
        both.add_row(losses, figures)
        rows: RenderableType = both if self._row else Text("waiting for the first reading ...")
        below = [Text(self._validation)] if self._validation else []
        return Group(self._bar, rows, *below, Text(self._left(), style="dim"))


def losses_of(row: Row) -> list[str]:
    """The names of the losses in a row of the log: the sum, the paper's four in their order, and others."""
    order = ("loss", "mim", "mlm", "itm", "itc")
    found = [name for name in row if name not in _READINGS]
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def course_of(values: "deque[float]") -> str:
    """Values as a line of small bars between their lowest and their highest."""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / max(high - low, 1e-12)
    return "".join(_BARS[round((value - low) * scale)] if value == value else " " for value in values)


def figures_of(row: Row) -> list[tuple[str, str]]:
    """(name, text) of everything in a row of the log but the losses, for people."""
    number = {name: value for name, value in row.items() if isinstance(value, int | float)}
    shown = []
    if "lr" in number:
        shown.append(("lr", f"{number['lr']:.3g}"))
    if "temperature" in number:
        shown.append(("temperature", f"{number['temperature']:.4f}"))
    if "samples_per_s" in number:
        shown.append(("samples/s", f"{number['samples_per_s']:.1f}"))
    if "mfu" in number:
        shown.append(("MFU", f"{100 * number['mfu']:.1f} %"))
    if "data_wait" in number:
        shown.append(("data wait", f"{100 * number['data_wait']:.0f} %"))
    if "memory_gib" in number:
        shown.append(("memory", f"{number['memory_gib']:.1f} GiB"))
    if number.get("slowest_by", 0) >= _SLOW:
        shown.append(("slowest rank", f"{number['slowest_rank']}, {number['slowest_by']:.1f}x the others"))
    if "goodput" in number:
        shown.append(("goodput", _goodput(number["goodput"], row.get("goodput_lost_to"))))
    shown.append(("skipped", f"{number.get('skipped_steps', 0)} steps, {number.get('unreadable', 0)} samples"))
    return shown


def _goodput(share: float, lost_to: object) -> str:
    """Goodput, and the three things that ate most of the rest."""
    eaten = list(lost_to.items())[:3] if isinstance(lost_to, Mapping) else []
    rest = ", ".join(f"{kind} {100 * part:.1f} %" for kind, part in eaten)
    return f"{100 * share:.1f} %" + (f" ({rest})" if rest else "")


def validation_text(row: Row) -> str:
    """A row of the validation's log in one line."""
    number = {name: value for name, value in row.items() if isinstance(value, int | float) and name not in ("step", "pairs")}
    ways = (("image_to_text", "image -> text"), ("text_to_image", "text -> image"))
    parts = [f"{name} {value:.4g}" for name, value in number.items() if not name.startswith(("image_to_", "text_to_"))]
    for way, label in ways:
        if f"{way}_r1" in number:
            places = "/".join(f"{number[f'{way}_r{k}']:.1f}" for k in (1, 5, 10))
            parts.append(f"{label} recall@1/5/10 {places} %")
    return "  ".join(parts)
