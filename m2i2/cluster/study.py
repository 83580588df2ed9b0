"""Several runs that belong together: chains of jobs, grids of settings, and one table of what came out."""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2i2.cluster.following import states
from m2i2.cluster.options import ClusterOptions
from m2i2.cluster.submission import Submitted, Task, read_record, sbatch_script, submit
from m2i2.errors import M2I2Error, shown
from m2i2.files import parse_json, read_object, read_tail, write_json, write_text
from m2i2.markdown import head, row

STUDY = "study.json"


@dataclass(frozen=True)
class Member:
    """One line of a study's table."""

    name: str
    settings: Mapping[str, str]
    """What sets it apart from the others."""
    run: str
    """Folder of its training run."""
    evaluation: str = ""
    """Folder of its evaluation, where it has one."""


@dataclass(frozen=True)
class Stage:
    """Tasks of one kind that run side by side, as a job or a job array."""

    name: str
    tasks: tuple[Task, ...]


def grid(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values of ``axes`` (setting -> values), the last axis fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def member_name(settings: Mapping[str, str]) -> str:
    """A folder's name for a combination of settings: itc=0,seed=1."""
    words = ((key.rsplit(".", 1)[-1], re.sub(r"[^\w.+-]+", "-", value)) for key, value in settings.items())
    return ",".join(f"{key}={value}" for key, value in words)


def dependency(before: Submitted, tasks: int) -> str:
    """That of a stage of so many tasks on the one before: each on its counterpart where there are as many, else on all."""
    kind = "aftercorr" if len(before.job_ids) == tasks > 1 else "afterok"
    return f"{kind}:{before.job_id}"


def submit_chain(stages: Sequence[Stage], options: ClusterOptions, jobs: Path, after: str = "") -> list[Submitted]:
    """Submit stages of which each waits for the success of the one before; ``jobs``: where their job folders are made.

    Where a job fails, those that wait for it are cancelled by SLURM.
    """
    chain: list[Submitted] = []
    for stage in stages:
        needs = dependency(chain[-1], len(stage.tasks)) if chain else after
        chain.append(submit(jobs, stage.name, stage.tasks, options, needs))
    return chain


def chain_scripts(stages: Sequence[Stage], options: ClusterOptions, jobs: Path, after: str = "") -> str:
    """The sbatch scripts that `submit_chain` would hand in, with JOB in the place of numbers that are not known yet."""
    texts = []
    for number, stage in enumerate(stages):
        needs = after
        if number:
            before = stages[number - 1]
            needs = dependency(Submitted(jobs, before.name, before.tasks, ("JOB",) * len(before.tasks), 1), len(stage.tasks))
        texts.append(sbatch_script(jobs / f"{stage.name}-DATE", stage.name, stage.tasks, options, needs))
    return "\n".join(texts)


def write_study(folder: Path, members: Sequence[Member], chain: Sequence[Submitted]) -> None:
    """``study.json``: what `collect` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    study = {"members": [asdict(member) for member in members], "jobs": [str(submitted.folder) for submitted in chain]}
    write_json(folder / STUDY, study)


def read_study(folder: Path) -> tuple[list[Member], list[Submitted]]:
    """The members and jobs of a study."""
    path = folder / STUDY
    study = read_object(path, "study", " Name the --output of a pipeline or sweep.")
    try:
        members = [Member(**row) for row in study["members"]]
        for member in members:
            texts = [member.name, member.run, member.evaluation, *member.settings, *member.settings.values()]
            if not all(isinstance(text, str) and text.isprintable() for text in texts):
                raise ValueError(f"{shown(member.name)} is not a member")
        return members, [read_record(Path(job)) for job in study["jobs"]]
    except M2I2Error:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise M2I2Error(f"{path} is not a study ({type(e).__name__}: {e}).") from e


def collect(folder: Path) -> list[dict[str, Any]]:
    """A row for every member: its settings, its last job's state, the last line of its log, and the accuracies of its views."""
    members, chain = read_study(folder)
    ends = _ends(chain, len(members))
    rows = []
    for member, state in zip(members, ends, strict=True):
        row: dict[str, Any] = {"run": member.name, **member.settings, "state": state}
        log = _last_line(Path(member.run) / "log.jsonl")
        row.update({name: log[name] for name in ("step", "loss") if name in log})
        results = Path(member.evaluation) / "results.json" if member.evaluation else None
        if results and results.exists():
            row.update(_accuracies(results))
        rows.append(row)
    return rows


def _accuracies(path: Path) -> dict[str, Any]:
    """Those of an evaluation's views, by view and kind."""
    try:
        views = read_object(path, "results")["views"].items()
        kinds = ("closed", "open", "overall")
        return {f"{view} {kind}": scores["model"][kind]["accuracy"] for view, scores in views for kind in kinds}
    except (KeyError, TypeError, AttributeError) as e:
        raise M2I2Error(f"{path} holds no results of an evaluation ({type(e).__name__}: {e}); evaluate again.") from e


def _ends(chain: Sequence[Submitted], members: int) -> list[str]:
    """For every member, the state of the first of its jobs that is not done, with its stage; or COMPLETED."""
    ends = ["COMPLETED"] * members
    for submitted in reversed(chain):
        if len(submitted.job_ids) not in (1, members):
            raise M2I2Error(
                f"{submitted.folder} has {len(submitted.job_ids)} jobs, the study {members} members; they do not belong."
            )
        found = states(submitted)
        for member in range(members):
            state = found[member if len(found) > 1 else 0]
            if state.name != "COMPLETED":
                ends[member] = f"{submitted.name} {state.name}" if len(chain) > 1 else state.name
    return ends


def _last_line(path: Path) -> dict[str, Any]:
    try:
        last = parse_json(read_tail(path, 1 << 16).rstrip("\n").split("\n")[-1].encode())
    except (OSError, ValueError, IndexError):
        return {}
    return last if isinstance(last, dict) else {}


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    columns = _columns(rows)
    return "\n".join([*head(columns), *(row(_cell(one.get(name)) for name in columns) for one in rows)])


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``table.csv`` and ``table.md`` of a study."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", text.getvalue())
    write_text(folder / "table.md", as_markdown(rows) + "\n")
