"""Answers that the official clean-up loses are learned, ranked, written, scored and shown under `clean`; a misfit is said."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.compare import main as compare
from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.cli.report import main as report
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.reporting.records import read_run
from tests.launching import launch
from tests.unit.test_answer_forms import PAIRS

LOST = ("words", "none", "letters", "sign", "cmp", "zh")
"""Kinds of answers; the others are tests of `tests/unit/test_answer_forms.py`."""
ANSWERS = [answer for kind in LOST for answer in PAIRS[kind]]
SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0c", "\x0b")
SPLITS = {"train": 8, "val": 1, "test": 3}
SETTINGS = [
    "--preset=tiny",
    "vision.depth=1",
    "vision.width=64",
    "text.width=64",
    "text.intermediate=128",
    "text.initializer_range=0.08",
    "optimizer.lr=2e-3",
    "optimizer.clip=0",
    "optimizer.warmup_epochs=1.0",
    "answering.distillation=0",
    "data.crop_scale=0.98,1",
    "data.workers=0",
    "training.batch=32",
    "training.epochs=18",
    "training.precision=float32",
    "training.save_every=5000",
    "training.log_every=100",
]
SIZE = ["vision.image_size=32", "text.depth=2", "text.fusion_layer=1", "text.decoder_depth=1", "training.batch=16"]
LENGTH = ["training.epochs=31", "training.max_steps=180"]
"""The last of 31 epochs of 6 steps is left out."""


def question(number: int) -> str:
    """A question that tells its answer, with something that ends a line in some editors."""
    return f"thing{SEPARATORS[number % 5]}{chr(97 + number)}{chr(98 + number // 2)}?"


def written(folder: Path) -> Path:
    """A table of questions about noise."""
    rows = []
    for split, images in SPLITS.items():
        for image in range(images):
            name = f"{split}{image}.png"
            noise = np.random.default_rng([image, images]).integers(0, 255, (32, 32), np.uint8)
            Image.fromarray(noise).save(folder / name)
            for number, answer in enumerate(ANSWERS):
                row = {"image": name, "question": question(number), "answer": answer, "answer_type": "OPEN", "split": split}
                rows.append({**row, "question_type": "kind"})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder / "questions.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a vocabulary and a run under `clean`, in a folder whose name is not UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("answers")) + b"/l\xe4ufe"))
    folder.mkdir()
    words = ["vqa", "json", str(written(folder)), "--output", str(folder / "shards"), "--side", "32", "--workers", "1"]
    assert make_shards(words) == 0
    texts = [*ANSWERS, *(question(number) for number in range(len(ANSWERS))), " ".join("".join(ANSWERS))]
    train_tokenizer(texts, 500).save(folder / "tokenizer")
    words = ["--shards", "shards", "--output", "run", *SETTINGS, *SIZE, "start.tokenizer=tokenizer"]
    done = launch("finetune", [*words, "answering.protocol=clean", *LENGTH], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def results_of(folder: Path, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An evaluation under `clean`, and its predictions."""
    output = folder / "out" / ("-".join(word.strip("-") for word in words) or "rank")
    where = ["--checkpoint", str(folder / "run"), "--shards", str(folder / "shards"), "--output", str(output)]
    assert evaluate([*where, "--protocol", "clean", *words]) == 0
    found = read_run(output).evaluations[0]
    return found.results, found.predictions


def test_what_the_official_form_loses_is_right_both_ways(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, rows = results_of(folder, "--generate-too")
    assert results["views"]["test"]["model"]["overall"]["accuracy"] == 100
    assert results["ranking_and_generation_agree"]["percent"] == 100
    assert len(rows) == 3 * len(ANSWERS), "predictions with U+2028 in them are lines of their own"
    assert all(row["prediction"] == row["generated"] == row["answer"] for row in rows), "as the data spells them"
    assert results["normalisation"] == results["configuration"]["answering"]["normalisation"] == "fixed"
    assert os.fsencode(results["checkpoint"]).startswith(os.fsencode(folder))
    assert results["answers"]["questions"] == len(rows) and not results["answers"]["candidate_not_as_trained"]
    low, high = results["views"]["test"]["model"]["overall"]["interval"]
    assert low < 50 and high == 100, "three images"
    out = capsys.readouterr().out
    assert "published" not in out and "in the form fixed" in out and "\\udce4ufe" in out
    assert compare([str(folder / "out" / "generate-too")] * 2) == 0


def test_a_view_is_named_by_its_split(folder: Path) -> None:
    for split, rows in (("val", 1), ("selection", 1)):
        results, _ = results_of(folder, "--split", split, "--mode", "generate")
        assert list(results["views"]) == [split]
        assert results["views"][split]["model"]["overall"]["total"] == rows * len(ANSWERS)


def test_a_report_counts_spellings_that_differ_by_case_and_space_once(folder: Path, tmp_path: Path) -> None:
    results_of(folder)
    evaluation = shutil.copytree(folder / "out" / "rank", tmp_path / "evaluation")
    row = {"id": "1", "image": "a", "question": "q\u2028q?", "closed": False, "correct": False, "best": [["x", 1.0]]}
    pairs = [("Left lung", "Liver"), ("left  lung", "liver"), ("left lung", "liver"), ("left lung", "spleen")]
    lines = [json.dumps({**row, "answer": a, "prediction": b, "metadata": {}}, ensure_ascii=False) for a, b in pairs]
    (evaluation / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert report([str(evaluation), "--no-gradcam", "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("&times;3</small>") == 1 and page.count("&times;1</small>") == 1
    assert "Answers are compared in the form <code>fixed</code>" in page


def test_a_vocabulary_that_does_not_fit_is_refused_by_clean_and_warned_of_by_paper(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(["thing", "liver"], 200).save(tmp_path / "small")
    words = ["--shards", folder / "shards", "--output", "run", *SETTINGS, *SIZE, "start.tokenizer=small"]
    done = launch("finetune", [*words, "answering.protocol=clean"], tmp_path)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "% of the tokens of the answers are [UNK]" in done.stderr and "clean does not train" in done.stderr
    done = launch("finetune", [*words, "training.max_steps=1"], tmp_path)
    assert done.returncode == 0 and "Warning: The vocabulary does not fit this data" in done.stdout
    assert "to an empty text" in done.stdout, "the form official loses the answer A"


def test_a_refused_start_leaves_the_settings_of_a_finished_run(folder: Path) -> None:
    before = (folder / "run" / "settings.json").read_bytes()
    words = ["--config", "run/settings.json", "--output", "run", "training.log_every=1"]
    refused = ["monitor.wandb=offline", "monitor.wandb_project=a/b", "training.max_steps=0"]
    for changes, code in ((refused, 2), ([], 0)):  # the second has nothing left to do
        done = launch("finetune", [*words, *changes], folder)
        assert done.returncode == code, done.stderr[-2000:]
        assert (folder / "run" / "settings.json").read_bytes() == before
