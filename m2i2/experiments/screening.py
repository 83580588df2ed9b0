"""A screening: many changes against one reference under a small budget; the best of them go on to a larger one.

Held-out figures alone decide: retrieval among held-out pairs (pretraining), or the questions that choose a checkpoint
(finetuning under the protocol ``clean``). No test question is asked.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2i2.config import require
from m2i2.errors import M2I2Error
from m2i2.experiments.recipe import NAME, prepared, refuse_paths, refuse_setting
from m2i2.files import read_object
from m2i2.markdown import head, row
from m2i2.options import from_dict


@dataclass(frozen=True, kw_only=True)
class Change:
    """One cell: what it changes, and what was thought of it before it ran."""

    settings: tuple[str, ...] = ()
    why: str = ""
    expected: str = ""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Everything that decides a screening; paths are relative to the work folder, as in a recipe."""

    name: str
    about: str = ""
    prepare: tuple[str, ...] = ()
    """As a recipe's."""
    preset: str = "small"
    shards: tuple[str, ...]
    """What is trained on: caption shards, or one folder of question shards."""
    held_out: tuple[str, ...] = ()
    """Caption shards whose pairs decide; none: finetuning is screened, and its selection decides."""
    split: str = "val"
    """Of ``held_out``."""
    settings: tuple[str, ...] = ()
    """Of every cell."""
    epochs: tuple[int, ...] = (2, 7, 20)
    """The budget of each stage: a tenth, a third and the whole. Every stage trains from the beginning, because the schedule of
    the learning rate depends on its length."""
    keep: float = 0.34
    """The share of a stage's cells that go on to the next; the first cell, the reference, always does."""
    cells: dict[str, Any] = field(default_factory=dict)
    """By name; see `Change`. The first one is the reference."""

    def __post_init__(self) -> None:
        require(list(self.epochs) == sorted(set(self.epochs)) and min(self.epochs, default=0) > 0, "epochs must grow, from 1 on.")
        require(0 < self.keep <= 1, f"keep={self.keep} must lie in (0, 1].")

    @property
    def changes(self) -> dict[str, Change]:
        """The cells, checked."""
        return {name: from_dict(Change, change, f"cells.{name}.") for name, change in self.cells.items()}

    @property
    def launcher(self) -> str:
        """What is screened: pretrain or finetune."""
        return "pretrain" if self.held_out else "finetune"


def is_screening(path: Path) -> bool:
    """Whether a file is a screening, not a recipe."""
    return "cells" in read_object(path, "recipe")


def read_screening(path: Path) -> Screening:
    """A screening's file; M2I2Error for what is unknown or missing, and for what would leave its folders."""
    values = read_object(path, "screening")
    if missing := [name for name in ("name", "shards", "cells") if name not in values]:
        raise M2I2Error(f"The screening {path} has no {missing[0]!r}; docs/ablations.md shows a complete one.")
    cells = values.pop("cells")
    if not isinstance(cells, dict) or len(cells) < 2:
        raise M2I2Error(f"The screening {path} needs a reference and at least one change in 'cells'.")
    screening = Screening(**{**vars(from_dict(Screening, values)), "cells": cells})
    try:
        for name in (screening.name, *cells):
            if not NAME.fullmatch(name):
                raise M2I2Error(f"The name {name!r:.80} is not valid: a name consists of letters, digits, spaces, dots, _ and -.")
        for line in screening.prepare:
            prepared(line, Path("{data}"))
        for word in (*screening.settings, *(s for change in screening.changes.values() for s in change.settings)):
            refuse_setting(word)
        for word in (screening.preset, *screening.shards, *screening.held_out):
            refuse_paths(word)
    except M2I2Error as e:
        raise M2I2Error(f"The screening {path} was refused. {e}") from e
    return screening


def going_on(screening: Screening, scores: list[Mapping[str, float]]) -> list[str]:
    """The cells of the stage after those that have ``scores``, by cell; a cell without a score has failed and stays behind."""
    if not scores:
        return list(screening.cells)
    last = scores[-1]
    reference = next(iter(screening.cells))
    order = sorted(last, key=lambda name: -last[name])
    best = {*order[: math.ceil(screening.keep * len(last))], reference}
    return [name for name in screening.cells if name in best and name in last]


def run_name(screening: Screening, cell: str, stage: int) -> str:
    """The folder of a cell's run at a stage (from 0), and the name of its record."""
    return f"{cell}-stage-{stage + 1}".replace(" ", "-")


def commands(screening: Screening, cell: str, stage: int) -> Iterator[list[str]]:
    """The launchers that make a cell at a stage, as words."""
    run = f"runs/{run_name(screening, cell, stage)}"
    words = ["--preset", screening.preset, "--shards", *screening.shards, "--output", run]
    settings = [*screening.settings, *screening.changes[cell].settings, f"training.epochs={screening.epochs[stage]}"]
    yield [screening.launcher, *words, *settings]
    if screening.held_out:
        output = ["--rerank", "0", "--split", screening.split, "--output", f"{run}/retrieval.json"]
        yield ["evaluate", "retrieval", "--checkpoint", run, "--shards", *screening.held_out, *output]


def figures(screening: Screening, run: Path) -> dict[str, Any]:
    """What decides: ``score`` in percent, and the figures that it is the mean of."""
    if not screening.held_out:
        best = read_object(run / "checkpoints" / "selection.json", "selection")["best"]
        return {"score": 100 * best["correct"] / best["total"], "selection": best}
    sources = read_object(run / "retrieval.json", "retrieval")["sources"]
    rows = [found[way]["ITC"] for found in sources.values() for way in ("image_to_text", "text_to_image")]
    return {"score": sum(row["r10"] for row in rows) / len(rows), "sources": sources}


def table(screening: Screening, scores: list[Mapping[str, float]], begun: Mapping[str, float]) -> str:
    """The screening as Markdown: each cell, what was expected, its score at every stage, and how far it came.

    ``begun``: the scores that there are of the first stage that is not complete.
    """
    stages = range(len(screening.epochs))
    what = "mean recall@10 of held-out pairs, %" if screening.held_out else "selection questions right, %"
    columns = ["cell", "changes", "why", "expected", *(f"{screening.epochs[s]} epochs" for s in stages), "outcome"]
    lines = [f"# Screening `{screening.name}`", "", screening.about, "", f"Figures: {what}; in brackets, less the reference.", ""]
    lines += head(columns)
    reference = next(iter(screening.cells))
    for name, change in screening.changes.items():
        cells = []
        for stage in stages:
            found = scores[stage] if stage < len(scores) else begun if stage == len(scores) else {}
            mine, other = found.get(name), found.get(reference)
            less = "" if other is None or name == reference or mine is None else f" ({mine - other:+.1f})"
            cells.append("" if mine is None else f"{mine:.1f}{less}")
        settings = " ".join(f"`{word}`" for word in change.settings) or "the reference"
        cells = [name, settings, change.why, change.expected, *cells, _outcome(screening, name, scores)]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def _outcome(screening: Screening, name: str, scores: list[Mapping[str, float]]) -> str:
    for stage in range(len(screening.epochs)):
        if name not in going_on(screening, scores[:stage]):
            return f"left behind after stage {stage}"
        if stage >= len(scores):
            return f"stage {stage + 1} is not complete"
        if name not in scores[stage]:
            return f"failed at stage {stage + 1}"
    return "ran to the end"
