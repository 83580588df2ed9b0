"""A recipe runs cell by cell, resumes from its records alone, and writes its report from them."""

import json
import subprocess
from pathlib import Path

import pytest

from m2i2.cli.ablate import main as ablate
from m2i2.data.sources.phantoms import PhantomQuestions
from m2i2.data.text.tokenizer import train_tokenizer
from tests.launching import launch, succeed

RECIPE = {
    "name": "drawn",
    "about": "Phantoms, to test the chain.",
    "prepare": [
        "make_shards.py captions phantoms --count 40 --side 64 --output shards/captions",
        "make_shards.py vqa phantoms --count 40 --side 64 --output shards/vqa",
    ],
    "preset": "tiny",
    "pretraining_shards": ["shards/captions"],
    "pretraining": ["training.batch=16", "training.max_steps=2", "data.workers=0"],
    "start": ["start.tokenizer=tokenizer"],
    "finetuning": ["training.batch=16", "training.epochs=1", "data.workers=0", "answering.protocol=clean", "training.log_every=2"],
    "datasets": {"drawn": {"shards": "shards/vqa", "variants": ["full", "no pretraining"], "seeds": 1}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    questions = (text for r in PhantomQuestions(count=40, seed=0) for q in r.questions for text in (q.question, q.answer))
    tokenizer = train_tokenizer(questions, 500)
    for work in ("work", "w", "screening"):
        tokenizer.save(folder / work / "tokenizer")
    return folder


WORDS = ["recipe.json", "--work", "work", "--results", "results", "--output", "RESULTS.md"]


def test_cells_run_one_by_one_and_resume_from_their_records(folder: Path) -> None:
    out = succeed("ablate", [*WORDS, "--only", "drawn-full-seed-0"], folder)
    assert "pretraining-full-seed-0: done" in out and "drawn-full-seed-0: done" in out
    listed = succeed("ablate", [*WORDS, "--list"], folder)
    assert [line.split()[:2] for line in listed.splitlines()] == [
        ["done", "pretraining-full-seed-0"],
        ["done", "drawn-full-seed-0"],
        ["missing", "drawn-no-pretraining-seed-0"],
    ]
    report = (folder / "RESULTS.md").read_text()
    assert "Not run yet: drawn-no-pretraining-seed-0." in report
    record = json.loads((folder / "results" / "drawn-full-seed-0.json").read_text())
    assert record["results"]["protocol"]["name"] == record["results"]["trained"]["protocol"] == "clean"
    assert record["results"]["trained"]["chosen_by"] == "selection"
    assert record["selection"]["best"]["total"] > 0
    assert record["results"]["splits"]["selection_questions"] == record["selection"]["best"]["total"]
    assert len(record["answers"]["right"]) == record["results"]["views"]["test"]["model"]["overall"]["total"]
    assert not (folder / "work" / "runs" / "drawn-full-seed-0" / "checkpoints").exists()
    # the rest, two at a time
    out = succeed("ablate", [*WORDS, "--jobs", "2"], folder)
    assert "drawn-no-pretraining-seed-0: done" in out and "full-seed-0: started" not in out
    report = (folder / "RESULTS.md").read_text()
    assert "Not run yet" not in report and "| no pretraining |" in report and "| question words (no image) |" in report
    accuracy = record["results"]["views"]["test"]["model"]["overall"]["accuracy"]
    assert f"| full | {record['results']['views']['test']['model']['closed']['accuracy']:.1f} [" in report
    assert f"| {accuracy:.1f} |" in report, "the seeds' own values"
    worth = record["results"]["image_dependence"]["overall"]
    least = min(worth[name]["lost"] for name in ("shuffled", "blank", "noise"))
    assert f"| {least:.1f} [" in report, "what the image is worth"
    medevalkit = record["results"]["rules"]["test"]["medevalkit"]["overall"]
    assert f"| {medevalkit['score']:.1f} ({medevalkit['total']}) |" in report, "the answers by another system's rule"
    assert (folder / "results" / "plot.png").stat().st_size > 5000
    # the report needs the records alone
    (folder / "RESULTS.md").unlink()
    subprocess.run(["rm", "-r", str(folder / "work")], check=True)
    succeed("ablate", [*WORDS, "--report"], folder)
    assert (folder / "RESULTS.md").read_text() == report


def test_a_cell_that_fails_is_named_with_its_log(folder: Path) -> None:
    broken = {**RECIPE, "finetuning": ["training.nothing=1"], "pretraining_shards": ["shards/vqa"]}
    (folder / "broken.json").write_text(json.dumps(broken))
    done = launch("ablate", ["broken.json", "--work", "w", "--results", "r", "--output", "R.md"], folder)
    assert done.returncode == 1
    assert "pretraining-full-seed-0: failed with exit code 2; see" in done.stdout
    assert "drawn-full-seed-0" in done.stdout.splitlines()[-1]
    assert "vqa holds vqa shards" in next((folder / "w" / "logs").glob("pretraining*")).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": {}}, "names no datasets"),
        ({"datasets": {"a": {"shards": "s", "variants": ["no MUM"]}}}, "there is no variant 'no MUM'; there are full"),
        ({"seed": 3}, "Unknown setting 'seed'"),
        ({"datasets": {"a": {"shard": "s"}}}, "Unknown setting 'datasets.a.shard'"),
    ],
)
def test_a_bad_recipe_is_one_paragraph(
    tmp_path: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({**RECIPE, **change}))
    assert ablate([str(tmp_path / "bad.json"), "--results", str(tmp_path), "--list"]) == 2
    assert message in capsys.readouterr().err


def test_a_screening_lets_the_best_go_on_and_resumes_from_its_records(folder: Path) -> None:
    small = ["training.batch=8", "data.workers=0", "start.tokenizer=tokenizer", "vision.image_size=32", "training.log_every=1"]
    screening = {
        "name": "drawn",
        "preset": "tiny",
        "prepare": ["make_shards.py captions phantoms --count 24 --side 32 --output shards/screened"],
        "shards": ["shards/screened"],
        "held_out": ["shards/screened"],
        "split": "train",
        "settings": [*small, "training.max_steps=2"],
        "epochs": [1, 2],
        "keep": 0.5,
        "cells": {"reference": {}, "fails": {"settings": ["training.nothing=1"], "why": "unknown"}},
    }
    (folder / "screening.json").write_text(json.dumps(screening))
    words = ["screening.json", "--work", "screening", "--results", "screened", "--jobs", "2"]
    done = launch("ablate", words, folder)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "fails-stage-1: failed with exit code 2" in done.stdout and "reference-stage-2: done" in done.stdout
    assert "fails-stage-2" not in done.stdout
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "screened").glob("*.json")}
    assert sorted(records) == ["fails-stage-1", "reference-stage-1", "reference-stage-2"]
    assert records["fails-stage-1"]["score"] is None and 0 <= records["reference-stage-2"]["score"] <= 100
    assert not (folder / "screening" / "runs" / "reference-stage-1" / "checkpoints").exists()
    assert (folder / "screening" / "runs" / "reference-stage-2" / "checkpoints").exists(), "the last stage's are kept"
    report = (folder / "screened" / "README.md").read_text()
    assert "| fails | `training.nothing=1` | unknown |" in report and "| ran to the end |" in report
    out = succeed("ablate", words, folder)
    assert "started" not in out and "stage 2: 1 cells of 2 epochs, 0 to run" in out
