"""On PYTHONPATH of a job: every rank notes which samples it trains on, and one fails or hangs where the test says so.

$RECORD_SAMPLES: the folder of the notes, one file per rank. $FAIL_AT, $HANG_AT, $KILL_AT: RANK:STEP that raises, never ends or is
killed, the last two once. $WRONG_ON: HOST:START whose matrix products are wrong in the preflight, from that start of the job on.
$STEP_SECONDS: how much longer every step takes, so that there is time to disturb a run on a fast machine; with commas, at the
job's first start, its second, and so on (the last is for the rest).
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _once(variable: str, rank: str, step: int) -> bool:
    """Whether the fault of a variable is due, for the first time in all starts of the job."""
    mark = Path(os.environ["RECORD_SAMPLES"]) / f"{variable}-was-here"
    if os.environ.get(variable) != f"{rank}:{step}" or mark.exists():
        return False
    mark.touch()
    return True


def _spoil(module: Any) -> None:
    """Let every product of this host have one wrong element."""
    host, _, start = os.environ["WRONG_ON"].partition(":")
    if host != os.uname().nodename or int(os.environ.get("SLURM_RESTART_COUNT", "0")) < int(start):
        return
    right = module.product

    def wrong(x: Any, y: Any) -> Any:
        found = right(x, y)
        found[3, 5] += 1
        return found

    module.product = wrong


def _record(module: Any) -> None:
    task = module.PretrainingTask
    begin, compute = task.begin_micro_batch, task.compute
    seconds = [float(number) for number in os.environ.get("STEP_SECONDS", "0").split(",")]

    def begun(self: Any, key: Any) -> None:
        self.key = key
        begin(self, key)

    def recorded(self: Any, batch: Any) -> Any:
        rank, step = os.environ["RANK"], self.key.step
        with (Path(os.environ["RECORD_SAMPLES"]) / f"rank-{rank}.jsonl").open("a") as f:
            f.write(json.dumps({"step": step, "items": batch.item.tolist()}) + "\n")
        time.sleep(seconds[min(int(os.environ.get("SLURM_RESTART_COUNT", "0")), len(seconds) - 1)])
        if os.environ.get("FAIL_AT") == f"{rank}:{step}":
            raise ZeroDivisionError("as the test wishes")
        if _once("KILL_AT", rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        while _once("HANG_AT", rank, step):
            time.sleep(100_000)
        return compute(self, batch)

    task.begin_micro_batch, task.compute = begun, recorded


class _Finder(importlib.abc.MetaPathFinder):
    """Changes modules right after they were imported."""

    def __init__(self, changes: dict[str, Callable[[Any], None]]) -> None:
        self.changes = changes

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.changes:
            return None
        change = self.changes.pop(name)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_changes: dict[str, Callable[[Any], None]] = {}
if os.environ.get("RECORD_SAMPLES"):
    _changes["m2i2.tasks.pretraining"] = _record
if os.environ.get("WRONG_ON"):
    _changes["m2i2.preflight.measures"] = _spoil
if _changes:
    sys.meta_path.insert(0, _Finder(_changes))
