"""On PYTHONPATH of a job: every rank notes which samples it trains on, and one fails or hangs where the test says so.

$RECORD_SAMPLES: the folder of the notes, one file per rank. $FAIL_AT, $HANG_AT: RANK:STEP that raises, or never ends.
$STEP_SECONDS: how much longer every step takes, so that there is time to disturb a run on a fast machine; with commas, at the
job's first start, its second, and so on (the last is for the rest).
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def _record(task: type) -> None:
    begin, compute = task.begin_micro_batch, task.compute  # type: ignore[attr-defined]
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
        while os.environ.get("HANG_AT") == f"{rank}:{step}":
            time.sleep(1)
        return compute(self, batch)

    task.begin_micro_batch, task.compute = begun, recorded  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "m2i2.tasks.pretraining":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _record(module.PretrainingTask)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("RECORD_SAMPLES"):
    sys.meta_path.insert(0, _Finder())
