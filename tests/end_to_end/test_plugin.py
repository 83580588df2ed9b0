"""An objective from outside the package: one function, one registry entry; it trains, logs, validates, reports and resumes."""

import json
from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from m2i2.cli.report import main as report
from m2i2.config import ObjectivesConfig
from m2i2.errors import M2I2Error
from m2i2.objectives.registry import active
from tests.launching import launch, succeed

TOY = '''
"""An objective of a laboratory of its own."""

from m2i2.objectives.registry import objective


@objective("alignment", weight=0.5)
def alignment(states):
    return (states.image_features - states.text_features).square().sum(-1).mean()
'''
SETTINGS = (
    *(
        "--preset",
        "tiny",
        "--shards",
        "captions",
        "--output",
        "run",
        "training.batch=8",
        "training.log_every=1",
        "validation.every=2",
    ),
    *("validation.pairs=4", "vision.depth=1", "data.workers=0", "objectives.plugins=laboratory.toys", "objectives.mim=0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    assert make_shards(["captions", "phantoms", "--output", str(folder / "captions"), "--count", "48", "--side", "64"]) == 0
    (folder / "laboratory").mkdir()
    (folder / "laboratory" / "toys.py").write_text(TOY)
    return folder


def test_it_trains_logs_resumes_and_reports(folder: Path) -> None:
    said = succeed("pretrain", [*SETTINGS, "training.max_steps=3"], folder)
    assert "Objective alignment of laboratory.toys, weight 0.5." in said
    said = succeed("pretrain", [*SETTINGS, "training.max_steps=6"], folder)
    assert "Resuming after step 3" in said
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        total = row["mlm"] + row["itm"] + row["itc"] + 0.5 * row["alignment"]
        assert row["loss"] == pytest.approx(total, rel=1e-4) and "mim" not in row
    assert rows[-1]["alignment"] < rows[0]["alignment"], "it is what is trained"
    held_out = [json.loads(line) for line in (folder / "run" / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in held_out] == [2, 3, 4, 6] and all(row["alignment"] > 0 for row in held_out)
    assert report([str(folder / "run"), "--output", str(folder / "report.html")]) == 0
    assert "alignment" in (folder / "report.html").read_text()


def test_a_module_that_is_not_there_is_one_paragraph(folder: Path) -> None:
    words = [word.replace("laboratory.toys", "laboratory.missing") for word in SETTINGS]
    done = launch("pretrain", [*words, "--output", "other"], folder)
    assert done.returncode == 2
    assert "objectives.plugins=laboratory.missing cannot be imported (ModuleNotFoundError" in done.stderr


def test_a_module_without_an_objective_is_one_paragraph() -> None:
    with pytest.raises(M2I2Error, match=r"objectives\.plugins=json registers no objective; decorate a function"):
        active(ObjectivesConfig(plugins=("json",)))
