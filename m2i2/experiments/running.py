"""Running a recipe's cells as processes of their own, some at a time, and recording each as one small JSON file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from m2i2.errors import M2I2Error
from m2i2.experiments.recipe import Cell, Recipe, cells, commands, prepared
from m2i2.files import read_object, read_rows, write_text
from m2i2.provenance import git_state, versions
from m2i2.terminal import say
from m2i2.training.stopping import EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]
_MOST_RESTARTS = 5
"""Of a cell whose launcher was ended by a signal."""


def unfinished(recipe: Recipe, results: Path, only: Sequence[str] = ()) -> list[Cell]:
    """The cells without a record, and the pretrainings that they start from; M2I2Error for a name in ``only`` that is none."""
    every = cells(recipe)
    if unknown := set(only) - {cell.name for cell in every}:
        raise M2I2Error(f"{recipe.name} has no cell {min(unknown)!r}; its cells are {', '.join(cell.name for cell in every)}.")
    open_ = [c for c in every if (not only or c.name in only) and not record_path(results, c).exists()]
    asked = {cell.name for cell in open_ if cell.dataset or cell.name in only} | {cell.needs for cell in open_}
    return [cell for cell in every if cell.name in asked]


def record_path(results: Path, cell: Cell) -> Path:
    """Where a finished cell is recorded."""
    return results / f"{cell.name}.json"


def prepare(lines: Sequence[str], data: Path, work: Path) -> None:
    """Weights and shards: each command of a recipe's ``prepare``, once; its --output says whether it has been done."""
    for line in lines:
        tool, words, folder = prepared(line, data.resolve())
        output = work / folder
        if any((output / name).exists() for name in ("index.json", "model.safetensors", "tokenizer.json")):
            continue
        say(f"preparing {output}", flush=True)
        done = subprocess.run([sys.executable, str(ROOT / "tools" / tool), *words], cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise M2I2Error(f"Preparing {output} failed: {(done.stderr or done.stdout).strip()[-800:]}")


class CellRun:
    """A cell in progress: its launchers one after another, their output in ``work/logs``; resumable, as each of them is."""

    def __init__(self, name: str, commands: Sequence[list[str]], work: Path, threads: int) -> None:
        """``commands``: the launchers as words, each resumable."""
        self.name, self._work = name, work
        self._commands = list(commands)
        self._environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")},
            "OMP_NUM_THREADS": str(threads),
            "M2I2_THREADS": str(threads),
        }
        self.log = work / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self.code = 0

    def goes_on(self) -> bool:
        """Start the next launcher where the last one has ended well, and one that a signal has ended again, which resumes it.

        False once all are done, or one has failed (`code`).
        """
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return True
            if (code == EXIT_STOPPED or code < 0) and self._restarts < _MOST_RESTARTS:
                self._restarts += 1
            elif code:
                self.code = code
                return False
            else:
                self._commands.pop(0)
        if not self._commands:
            return False
        launcher, *words = self._commands[0]
        with self.log.open("a") as log:
            say("$", launcher, *words, file=log, flush=True)
            script = [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *words]
            self._process = subprocess.Popen(script, cwd=self._work, env=self._environment, stdout=log, stderr=log)
        return True

    def stop(self) -> None:
        """Let it save and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()


def run(
    recipe: Recipe, work: Path, results: Path, *, jobs: int, threads: int, only: Sequence[str] = (), tell: Callable[[str], None]
) -> list[str]:
    """Run what is unfinished, ``jobs`` cells at a time; returns the names of the cells that failed.

    A pretraining whose record is there is run only where a finetuning still needs its weights and they are not in ``work``.
    """
    waiting, failed = unfinished(recipe, results, only), list[str]()
    done: set[str] = set()
    by_name = {cell.name: cell for cell in waiting}

    def following() -> CellRun | None:
        cell = _ready(waiting, done)
        if cell is None:
            return None
        waiting.remove(cell)
        tell(f"{cell.name}: started ({len(waiting)} more cells wait)")
        return CellRun(cell.name, list(commands(recipe, cell)), work, threads)

    for one in _ended(following, jobs):
        if one.code:
            failed.append(one.name)
            tell(f"{one.name}: failed with exit code {one.code}; see {one.log}")
            lost = [cell for cell in waiting if cell.needs == one.name]
            failed += [cell.name for cell in lost]
            waiting = [cell for cell in waiting if cell not in lost]
        else:
            done.add(one.name)
            record(recipe, by_name[one.name], work, results, time.time() - one.started)
            tell(f"{one.name}: done in {(time.time() - one.started) / 60:.1f} min")
    return failed


def run_together(runs: Sequence[CellRun], jobs: int, done: Callable[[CellRun], None], tell: Callable[[str], None]) -> None:
    """Run what waits for nothing, ``jobs`` at a time; each is given to ``done`` when it has ended, well or not (`CellRun.code`)."""
    waiting = list(runs)

    def following() -> CellRun | None:
        if not waiting:
            return None
        one = waiting.pop(0)
        one.started = time.time()
        tell(f"{one.name}: started ({len(waiting)} more wait)")
        return one

    for one in _ended(following, jobs):
        done(one)
        end = f"failed with exit code {one.code}; see {one.log}" if one.code else "done"
        tell(f"{one.name}: {end} in {(time.time() - one.started) / 60:.1f} min")


def _ended(following: Callable[[], CellRun | None], jobs: int) -> Iterator[CellRun]:
    """Each run once it has ended, ``jobs`` at a time. ``following``: the next one; None where none can start yet, or any more.

    A signal to this process stops those that run, and ends it.
    """
    running: list[CellRun] = []
    with _stop_signals() as stopped:
        while True:
            if stopped():
                for one in running:
                    one.stop()
                raise SystemExit(EXIT_STOPPED)
            while len(running) < jobs and (started := following()):
                running.append(started)
            if not running:
                return
            for one in [one for one in running if not one.goes_on()]:
                running.remove(one)
                yield one
            time.sleep(0.2)


def _ready(waiting: Sequence[Cell], done: set[str]) -> Cell | None:
    return next((cell for cell in waiting if not cell.needs or cell.needs in done), None)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come, instead of an end on the spot."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def record(recipe: Recipe, cell: Cell, work: Path, results: Path, seconds: float | None = None) -> None:
    """Write a finished cell's record and, for a finetuning, remove its checkpoints, which are large and can be made again."""
    run_folder = work / "runs" / cell.name
    log = read_rows(run_folder / "log.jsonl")
    content: dict[str, Any] = {
        "recipe": asdict(recipe) | {"datasets": recipe.datasets},
        "cell": asdict(cell),
        "commands": list(commands(recipe, cell)),
        "settings": read_object(run_folder / "settings.json", "settings"),
        "seconds_of_this_start": None if seconds is None else round(seconds),
        "log": {"first": log[0], "last": log[-1]},
        "git": git_state(),
        "versions": versions(),
    }
    if cell.dataset:
        content |= _evaluation(run_folder / "evaluation")
        scores = run_folder / "checkpoints" / "selection.json"
        content["selection"] = read_object(scores, "selection") if scores.exists() else None
    results.mkdir(parents=True, exist_ok=True)
    write_text(record_path(results, cell), json.dumps(content, ensure_ascii=False) + "\n")
    if cell.dataset:
        shutil.rmtree(run_folder / "checkpoints")


def _evaluation(folder: Path) -> dict[str, Any]:
    """What the report needs of an evaluation: the scores, and which question of which image was answered right."""
    results = read_object(folder / "results.json", "results")
    for bulky in ("configuration", "versions", "command", "git"):
        results.pop(bulky, None)
    rows = read_rows(folder / "predictions.jsonl")
    answers = {
        "image": [row["image"] for row in rows],
        "id": [row["id"] for row in rows],
        "closed": "".join(str(int(row["closed"])) for row in rows),
        "right": "".join(str(int(row["correct"])) for row in rows),
        "freeform": "".join(str(int(row["metadata"].get("phrase_type") == "freeform")) for row in rows),
    }
    return {"results": results, "answers": answers}
