"""Running a screening, stage by stage; each cell of a stage is recorded as one small JSON file, from which it goes on anywhere."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from m2i2.experiments.running import CellRun, run_together
from m2i2.experiments.screening import Screening, commands, figures, going_on, run_name, table
from m2i2.files import read_object, read_rows, write_text
from m2i2.provenance import git_state, versions


def scores(screening: Screening, results: Path) -> list[Mapping[str, float]]:
    """The scores by cell of every stage whose cells are all recorded, from the first on. A failed cell's record has none."""
    found: list[Mapping[str, float]] = []
    for stage in range(len(screening.epochs)):
        asked = going_on(screening, found)
        if not asked or not all(record_path(screening, results, name, stage).exists() for name in asked):
            break
        found.append(_recorded(screening, results, asked, stage))
    return found


def _recorded(screening: Screening, results: Path, cells: Sequence[str], stage: int) -> Mapping[str, float]:
    """The scores of those of the cells that have a record of a stage, and did not fail."""
    paths = {name: record_path(screening, results, name, stage) for name in cells}
    read = {name: read_object(path, "record").get("score") for name, path in paths.items() if path.exists()}
    return {name: float(score) for name, score in read.items() if score is not None}


def record_path(screening: Screening, results: Path, cell: str, stage: int) -> Path:
    """Where a cell of a stage is recorded."""
    return results / f"{run_name(screening, cell, stage)}.json"


def screen(screening: Screening, work: Path, results: Path, *, jobs: int, threads: int, tell: Callable[[str], None]) -> list[str]:
    """Run every stage, ``jobs`` cells at a time; returns the names of the runs that failed, which go no further."""
    failed: list[str] = []
    for stage in range(len(screening.epochs)):
        asked = going_on(screening, scores(screening, results)[:stage])
        missing = [name for name in asked if not record_path(screening, results, name, stage).exists()]
        tell(f"stage {stage + 1}: {len(asked)} cells of {screening.epochs[stage]} epochs, {len(missing)} to run")
        names = {run_name(screening, cell, stage): cell for cell in missing}

        def done(one: CellRun, stage: int = stage, names: dict[str, str] = names) -> None:
            _record(screening, names[one.name], stage, work, results, one)
            if one.code:
                failed.append(one.name)

        runs = [CellRun(name, list(commands(screening, cell, stage)), work, threads) for name, cell in names.items()]
        run_together(runs, jobs, done, tell)
    return failed


def _record(screening: Screening, cell: str, stage: int, work: Path, results: Path, one: CellRun) -> None:
    """Write a record; the checkpoints of all but the last stage's runs are removed."""
    run = work / "runs" / one.name
    content = {
        "screening": screening.name,
        "cell": cell,
        "stage": stage + 1,
        "epochs": screening.epochs[stage],
        "commands": list(commands(screening, cell, stage)),
        "seconds_of_this_start": round(time.time() - one.started),
        "git": git_state(),
        "versions": versions(),
    }
    if one.code:
        content |= {"score": None, "failed": f"exit code {one.code}; see {one.log.name}"}
    else:
        log = read_rows(run / "log.jsonl")
        content |= {**figures(screening, run), "log": {"first": log[0], "last": log[-1]}}
    results.mkdir(parents=True, exist_ok=True)
    write_text(record_path(screening, results, cell, stage), json.dumps(content, ensure_ascii=False) + "\n")
    if not one.code and stage + 1 < len(screening.epochs):
        shutil.rmtree(run / "checkpoints")


def write_table(screening: Screening, results: Path, output: Path) -> None:
    """The screening's table, from its records alone."""
    complete = scores(screening, results)
    begun = _recorded(screening, results, going_on(screening, complete), len(complete))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, table(screening, complete, begun))
