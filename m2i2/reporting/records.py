"""What runs and evaluations have left in their folders, read as it is: whatever is missing is empty, not an error.

A folder may come from elsewhere: no link in it is followed out of it, and nothing but regular files is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON, MOST_LINES, parse_json, read_bytes
from m2i2.ownership import inside
from m2i2.training.goodput import LEDGER

Rows = list[dict[str, Any]]
_MOST_PICTURE = 1 << 26
"""Bytes of a picture."""


@dataclass(frozen=True)
class Evaluation:
    """A folder with results.json."""

    folder: Path
    results: dict[str, Any]
    predictions: Rows
    localisation: dict[str, Any] = field(default_factory=dict)
    """What tools/gradcam.py --slake has written beside it, or in the run's folder."""


@dataclass(frozen=True)
class Run:
    """A run's folder, or one that holds an evaluation only."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    starts: Rows = field(default_factory=list)
    log: Rows = field(default_factory=list)
    validations: Rows = field(default_factory=list)
    goodput: Rows = field(default_factory=list)
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
        found = (self.folder / "validation").glob("reconstructions-*.png")
        return sorted(path for path in found if path.stem.removeprefix("reconstructions-").isdecimal())

    @property
    def retrieval(self) -> dict[str, Any]:
        """The last validation's examples of retrieval."""
        found = sorted((self.folder / "validation").glob("retrieval-*.json"))
        return _object(found[-1], self.folder) if found else {}

    def picture(self, path: Path) -> bytes:
        """The content of a picture of the run; empty where it is missing."""
        return _content(path, self.folder, _MOST_PICTURE) or b""


def read_run(folder: Path) -> Run:
    """The run, or the evaluation, in ``folder``; M2I2Error where it is neither."""
    if not folder.is_dir():
        raise M2I2Error(f"{folder} is not a folder; name a run's folder, or one with results.json.")
    evaluations = [
        _evaluation(path.parent, folder) for path in sorted([*folder.glob("results.json"), *folder.glob("*/results.json")])
    ]
    run = Run(
        folder,
        settings=_object(folder / "settings.json", folder),
        starts=_rows(folder / "starts.jsonl", folder),
        log=_rows(folder / "log.jsonl", folder),
        validations=_rows(folder / "validation.jsonl", folder),
        goodput=_rows(folder / LEDGER, folder),
        evaluations=evaluations,
    )
    if not run.settings and not run.evaluations:
        raise M2I2Error(f"{folder} holds neither settings.json of a run nor results.json of an evaluation; name another folder.")
    return run


def question_type(row: Mapping[str, Any]) -> str:
    """The type of an answered question, as its data names it."""
    return str(row.get("metadata", {}).get("question_type") or "no type given")


def _evaluation(folder: Path, run: Path) -> Evaluation:
    localisation = next((found for place in (folder, run) if (found := _object(place / "localisation.json", run))), {})
    return Evaluation(folder, _object(folder / "results.json", run), _rows(folder / "predictions.jsonl", run), localisation)


def _content(path: Path, run: Path, most: int) -> bytes | None:
    """The content of a file of the folder ``run``, None where it is missing; M2I2Error outside, or over ``most`` bytes."""
    if not inside(path, run):
        raise M2I2Error(f"{path} is, or lies behind, a link to a place outside {run}, which is not followed. Copy the file there.")
    try:
        return read_bytes(path, most)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise M2I2Error(f"{path} cannot be read ({e.strerror}); correct or remove it.") from e


def _object(path: Path, run: Path) -> dict[str, Any]:
    content = _content(path, run, MOST_JSON)
    if content is None:
        return {}
    try:
        value = parse_json(content)
    except ValueError as e:
        raise M2I2Error(f"{path} cannot be read ({e}); correct or remove it.") from e
    return value if isinstance(value, dict) else {}


def _rows(path: Path, run: Path) -> Rows:
    """The JSON objects of a file, a line each; a line that a kill cut off is left out."""
    rows = []
    for line in (_content(path, run, MOST_LINES) or b"").split(b"\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
