"""Measurements as rows of a CSV file: what was measured, on which card, by which command; and tables made of them."""

import csv
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from m2i2 import markdown
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_bytes, write_text
from m2i2.provenance import git_state

_MOST_BYTES = 16 << 20
_BEGIN, _END = "<!-- speed.csv -->", "<!-- end of speed.csv -->"
"""In a page: where the tables begin and end."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row. Every value is text, so that a row that is read and written stays as it was."""

    date: str
    """Of the measurement, UTC."""
    card: str
    """Name of the GPU, with the number of ranks before it where there are several; without a GPU, that of the processor."""
    torch: str
    driver: str
    """Version of the GPU's driver; empty without a GPU."""
    commit: str
    what: str
    preset: str
    batch: str
    """Global, in pairs or questions."""
    tokens: str
    """Of a caption, or of a question + its answer."""
    pairs_per_s: str
    """Pairs or questions per second, of all ranks."""
    tflops: str
    """10^12 useful operations per second of one rank (m2i2/models/flops.py)."""
    memory_gb: str
    """10^9 bytes of one rank: reserved by PyTorch's allocator on a GPU, the process's peak resident memory on a CPU."""
    command: str

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return bool(self.driver)

    def number(self, column: str) -> float:
        """A column that is a number; M2I2Error where it is something else, or not above 0."""
        text = getattr(self, column)
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e18:
            raise M2I2Error(f"{column}={shown(text)} of the row of {self.date} ({self.what}, {self.card}) is not a number above 0.")
        return value

    @property
    def ranks(self) -> int:
        """How many there were."""
        found = re.match(r"(\d+) x ", self.card)
        return int(found[1]) if found else 1


COLUMNS = tuple(field.name for field in fields(Record))


def record_of(stage: str, found: Mapping[str, Any], words: Sequence[str] | None = None) -> Record:
    """The row of what a stage of the benchmark has ``found``, on this machine, now; ``words``: its command (default: this one)."""
    ranks = int(found.get("ranks", 1))
    if stage == "ranking":
        rate, tokens, batch = 1 / found["seconds_per_question"], found["question_tokens"], found["questions"]
        flops = found["gflop_per_question"] * rate
    else:
        rate, batch, flops = found["pairs_per_s"], found["batch"], found["gflop_per_s_per_rank"]
        tokens = found["tokens"] if stage == "pretrain" else f"{found['question_tokens']}+{found['answer_tokens']}"
    card, driver = card_and_driver()
    return Record(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        card=f"{ranks} x {card}" if ranks > 1 else card,
        torch=torch.__version__,
        driver=driver,
        commit=os.environ.get("M2I2_COMMIT") or git_state(),
        what=f"{stage}, {found['precision']}",
        preset=str(found["preset"]),
        batch=str(batch),
        tokens=str(tokens),
        pairs_per_s=f"{rate:.4g}",
        tflops=f"{flops / 1e3:.4g}",
        memory_gb=f"{found.get('device_reserved_gb', found['host_peak_rss_gb']):.4g}",
        command=shlex.join(words or ["python", *_without_record(sys.argv)]),
    )


def _without_record(words: Sequence[str]) -> list[str]:
    """A command line from the checkout's root, without the places of this machine that it was told to write to."""
    kept, skipped = [], False
    for word in (f"tools/{Path(words[0]).name}", *words[1:]):
        if skipped or word.startswith(("--record=", "--local_rank")):
            skipped = False
        elif word in ("--record", "--profile"):
            skipped = True
        elif word != "--json":
            kept.append(word)
    return kept


def card_and_driver() -> tuple[str, str]:
    """The name of the first GPU and the version of its driver; without one, the processor's name and nothing."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), _driver()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"CPU: {model}, {torch.get_num_threads()} thread(s)", ""


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def read(path: Path) -> list[Record]:
    """The rows of a file; M2I2Error where it is missing or something else."""
    try:
        text = read_bytes(path, _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read the measurements {path}: {e}.") from e
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise M2I2Error(f"{path} does not begin with the columns {','.join(COLUMNS)}; name another file.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(COLUMNS):
            raise M2I2Error(f"Row {number} of {path} has {len(row)} values for {len(COLUMNS)} columns; correct or remove it.")
    return [Record(**dict(zip(COLUMNS, row, strict=True))) for row in rows[1:]]


def check(path: Path) -> None:
    """M2I2Error where no row can be added to the file; called before a measurement that would be lost."""
    if path.exists():
        read(path)
    elif not path.parent.is_dir():
        raise M2I2Error(f"There is no folder {path.parent} for {path.name}; make it, or name another file.")


def append(path: Path, record: Record) -> None:
    """Add a row; the first one begins the file."""
    rows = read(path) if path.exists() else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(list(asdict(one).values()) for one in (*rows, record))
    write_text(path, text.getvalue())


def tables(records: Sequence[Record]) -> str:
    """Markdown: a table of each card, those measured on a GPU first, the newest card first; rows in the order of the file."""
    cards = list(dict.fromkeys(one.card for one in reversed(records)))
    cards.sort(key=lambda card: not next(one for one in records if one.card == card).on_gpu)
    return "\n\n".join(_table(card, [one for one in records if one.card == card]) for card in cards)


def _table(card: str, records: Sequence[Record]) -> str:
    memory = "GB reserved on the device" if records[0].on_gpu else "GB resident"
    heads = ("what", "preset", "batch", "tokens", "per second", "TFLOP/s a rank", memory, "measured with", "command")
    lines = markdown.head(heads)
    for one in records:
        driver = f", driver {one.driver}" if one.on_gpu else ""
        origin = f"{one.date}, torch {one.torch}{driver}, {one.commit[:9] or 'no commit'}{'+' if '+' in one.commit else ''}"
        measured = (one.pairs_per_s, one.tflops, one.memory_gb, origin, f"`{one.command}`")
        lines.append(markdown.row((one.what, one.preset, one.batch, one.tokens, *measured)))
    return f"**{card}**\n\n" + "\n".join(lines)


def into_page(page: Path, text: str) -> None:
    """Put tables into a page, between its two marks; M2I2Error where it has none."""
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as e:
        raise M2I2Error(f"Cannot read {page}: {e.strerror}.") from e
    before, begin, rest = old.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise M2I2Error(f"{page} has no lines {_BEGIN} and {_END} for the tables to stand between; add them.")
    write_text(page, f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def find(records: Sequence[Record], *, row: int | None = None, card: str = "", what: str = "") -> Record:
    """The pretraining row of that number, counted from 1; or the newest one whose ``card`` and ``what`` contain the given texts."""
    if row is not None:
        if not 1 <= row <= len(records):
            raise M2I2Error(f"There is no row {row}: the file has {len(records)}, counted from 1 without the heads.")
        found = [records[row - 1]]
    else:
        found = [one for one in records if card.lower() in one.card.lower() and what.lower() in one.what.lower()]
    found = [one for one in found if one.what.startswith("pretrain")]
    if not found:
        raise M2I2Error("No such row was measured with `tools/benchmark.py pretrain`, and only pretraining can be planned.")
    return found[-1]
