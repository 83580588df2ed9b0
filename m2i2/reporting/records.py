"""What runs and evaluations have left in their folders, read as it is: whatever is missing is empty, not an error."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON, MOST_LINES, parse_json, read_bytes

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """A folder with results.json."""

    folder: Path
    results: dict[str, Any]
    predictions: Rows


@dataclass(frozen=True)
class Run:
    """A run's folder, or one that holds an evaluation only."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    starts: Rows = field(default_factory=list)
    log: Rows = field(default_factory=list)
    validations: Rows = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """pretraining, finetuning or evaluation."""
        if not self.settings:
            return "evaluation"
        return "pretraining" if "objectives" in self.settings else "finetuning"

    @property
    def reconstructions(self) -> list[Path]:
        """Pictures of masked images, in the order of their steps."""
        return sorted((self.folder / "validation").glob("reconstructions-*.png"))

    @property
    def retrieval(self) -> dict[str, Any]:
        """The last validation's examples of retrieval."""
        found = sorted((self.folder / "validation").glob("retrieval-*.json"))
        return _object(found[-1]) if found else {}


def read_run(folder: Path) -> Run:
    """The run, or the evaluation, in ``folder``; M2I2Error where it is neither."""
    if not folder.is_dir():
        raise M2I2Error(f"{folder} is no folder; name a run's folder, or one with results.json.")
    evaluations = [read_evaluation(path.parent) for path in sorted([*folder.glob("results.json"), *folder.glob("*/results.json")])]
    run = Run(
        folder,
        settings=_object(folder / "settings.json"),
        starts=_rows(folder / "starts.jsonl"),
        log=_rows(folder / "log.jsonl"),
        validations=_rows(folder / "validation.jsonl"),
        evaluations=evaluations,
    )
    if not run.settings and not run.evaluations:
        raise M2I2Error(f"{folder} holds neither settings.json of a run nor results.json of an evaluation; name another folder.")
    return run


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in ``folder``."""
    return Evaluation(folder, _object(folder / "results.json"), _rows(folder / "predictions.jsonl"))


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_bytes(path, MOST_JSON))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise M2I2Error(f"{path} cannot be read ({e}); mend or remove it.") from e
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> Rows:
    """The JSON objects of a file, a line each; a line that a kill cut off is left out."""
    rows = []
    for line in read_bytes(path, MOST_LINES).split(b"\n") if path.exists() else []:
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
