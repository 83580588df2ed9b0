"""A recipe's cells as jobs of a SLURM cluster: an array of pretrainings, one of finetunings after it, one of evaluations."""

import os
from collections.abc import Sequence
from pathlib import Path

from m2i2.cluster.options import ClusterOptions
from m2i2.cluster.study import Stage, submit_chain
from m2i2.cluster.submission import Submitted, Task
from m2i2.experiments.recipe import Cell, Recipe, cells, commands
from m2i2.experiments.running import record, record_path, unfinished
from m2i2.files import read_object, read_rows

_ORDER = ("pretrain", "finetune", "evaluate")


def stages(recipe: Recipe, wanted: Sequence[Cell]) -> list[Stage]:
    """The launchers of ``wanted``, those of one kind side by side."""
    tasks: dict[str, list[Task]] = {name: [] for name in _ORDER}
    for cell in wanted:
        for launcher, *words in commands(recipe, cell):
            tasks[launcher].append(Task(f"{launcher}-{cell.name}", launcher, tuple(words)))
    return [Stage(name, tuple(found)) for name, found in tasks.items() if found]


def submit(recipe: Recipe, work: Path, results: Path, options: ClusterOptions, only: Sequence[str] = ()) -> list[Submitted]:
    """Submit what is unfinished; the jobs run in ``work``, which the nodes must share, and leave their folders there."""
    wanted = unfinished(recipe, results, only)
    here = Path.cwd()
    os.chdir(work)  # where the recipe's paths start
    try:
        return submit_chain(stages(recipe, wanted), options, work / "jobs") if wanted else []
    finally:
        os.chdir(here)


def collect(recipe: Recipe, work: Path, results: Path) -> list[str]:
    """Record what has finished in ``work`` and was not recorded; returns the cells' names."""
    found = []
    for cell in cells(recipe):
        run = work / "runs" / cell.name
        done = (run / "evaluation" / "results.json").exists() if cell.dataset else _finished(run)
        if done and not record_path(results, cell).exists():
            record(recipe, cell, work, results)
            found.append(cell.name)
    return found


def _finished(run: Path) -> bool:
    """Whether a training run's log has come to its end."""
    try:
        training = read_object(run / "settings.json", "settings")["training"]
        last = read_rows(run / "log.jsonl")[-1]
        return bool(last["epoch"] >= training["epochs"] or last["step"] == training["max_steps"])
    except (OSError, ValueError, KeyError, IndexError):
        return False
