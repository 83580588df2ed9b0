"""A screening: who goes on, what its file may say, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.ablate import main as ablate
from m2i2.errors import M2I2Error
from m2i2.experiments.screening import commands, going_on, read_screening, table
from m2i2.experiments.screening_run import scores, write_table

FILE: dict[str, Any] = {
    "name": "drawn",
    "preset": "tiny",
    "prepare": ["make_shards.py captions phantoms --count 24 --side 32 --workers 1 --output shards/captions"],
    "shards": ["shards/captions"],
    "held_out": ["shards/captions"],
    "settings": ["training.batch=8"],
    "epochs": [1, 2, 3],
    "keep": 0.5,
    "cells": {
        "reference": {},
        "warm": {"settings": ["objectives.temperature=0.2"], "why": "it collapses", "expected": "+1"},
        "cold": {"settings": ["objectives.temperature=0.01"]},
        "no mim": {"settings": ["objectives.mim=0"]},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "screening.json"
    path.write_text(json.dumps({**FILE, **changes}))
    return path


def test_the_best_and_the_reference_go_on(tmp_path: Path) -> None:
    screening = read_screening(written(tmp_path))
    assert going_on(screening, []) == ["reference", "warm", "cold", "no mim"]
    first = {"reference": 3.0, "warm": 5.0, "cold": 4.0, "no mim": 1.0}
    assert going_on(screening, [first]) == ["reference", "warm", "cold"], "half of four, and the reference"
    assert going_on(screening, [{**first, "reference": 9.0}]) == ["reference", "warm"]
    second = {"reference": 3.0, "cold": 6.0}  # warm has failed
    assert going_on(screening, [first, second]) == ["reference", "cold"]
    assert going_on(screening, [first, {}]) == []


def test_the_launchers_of_a_stage(tmp_path: Path) -> None:
    train, asked = commands(read_screening(written(tmp_path)), "no mim", 1)
    assert train[:7] == ["pretrain", "--preset", "tiny", "--shards", "shards/captions", "--output", "runs/no-mim-stage-2"]
    assert train[7:] == ["training.batch=8", "objectives.mim=0", "training.epochs=2"]
    assert asked[:4] == ["evaluate", "retrieval", "--checkpoint", "runs/no-mim-stage-2"]
    (only,) = commands(read_screening(written(tmp_path, held_out=[])), "reference", 0)
    assert only[0] == "finetune"


def test_the_table_says_what_became_of_each(tmp_path: Path) -> None:
    screening = read_screening(written(tmp_path))
    first = {"reference": 3.0, "warm": 5.0, "cold": 4.0, "no mim": 1.0}
    rows = {line.split(" | ")[0][2:]: line for line in table(screening, [first, {"reference": 3.5, "warm": 3.0}], {}).splitlines()}
    assert "`objectives.temperature=0.2` | it collapses | +1 | 5.0 (+2.0) | 3.0 (-0.5)" in rows["warm"]
    assert rows["warm"].endswith("left behind after stage 2 |")
    assert "| 1.0 (-2.0) |  |  | left behind after stage 1 |" in rows["no mim"]
    assert "the reference" in rows["reference"] and rows["reference"].endswith("stage 3 is not complete |")
    assert rows["cold"].endswith("failed at stage 2 |")


def test_the_table_has_what_there_is_of_a_stage_that_is_not_complete(tmp_path: Path) -> None:
    screening = read_screening(written(tmp_path))
    rows = {line.split(" | ")[0][2:]: line for line in table(screening, [], {"reference": 3.0, "warm": 5.0}).splitlines()}
    assert rows["warm"].endswith("| +1 | 5.0 (+2.0) |  |  | stage 1 is not complete |")
    assert "(" not in rows["cold"].split("|")[-5], rows["cold"]
    record = {"score": 7.0}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "warm-stage-1.json").write_text(json.dumps(record))
    write_table(screening, tmp_path / "results", tmp_path / "table.md")
    assert "| 7.0 |  |  | stage 1 is not complete |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cells": {"reference": {}}}, "needs a reference and at least one change"),
        ({"cells": {"a": {}, "../b": {}}}, "The name '../b' is not valid"),
        ({"cells": {"a": {}, "b": {"settings": ["start.text=/etc"]}}}, "names a path outside"),
        ({"cells": {"a": {}, "b": {"settings": ["objectives.plugins=os"]}}}, "would import a module"),
        ({"cells": {"a": {}, "b": {"setings": []}}}, "cells.b.setings"),
        ({"shards": ["../x"]}, "names a path outside"),
        ({"prepare": ["rm -r x"]}, "is not one of the tools"),
        ({"epochs": [3, 2]}, "epochs must grow"),
        ({"keep": 0}, "keep=0"),
    ],
)
def test_what_a_screening_may_not_say(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(M2I2Error) as caught:
        read_screening(written(tmp_path, **change))
    assert says in str(caught.value)


def test_scores_are_those_of_whole_stages(tmp_path: Path) -> None:
    screening = read_screening(written(tmp_path))
    for name, score in {"reference": 3.0, "warm": 5.0, "cold": None}.items():
        (tmp_path / f"{name}-stage-1.json").write_text(json.dumps({"score": score}))
    assert scores(screening, tmp_path) == []
    (tmp_path / "no-mim-stage-1.json").write_text(json.dumps({"score": 6.0}))
    assert scores(screening, tmp_path) == [{"reference": 3.0, "warm": 5.0, "no mim": 6.0}]


def test_options_of_recipes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate([str(written(tmp_path)), "--results", str(tmp_path), "--only", "warm"]) == 2
    assert "which takes no --cluster, --collect and --only" in capsys.readouterr().err
    assert ablate([str(written(tmp_path)), "--results", str(tmp_path / "r"), "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "missing  warm-stage-1"
