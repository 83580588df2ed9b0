"""Runs, shards and folders that version 0.1 wrote go on, answer and convert as they did (see artefacts/README.md)."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from m2i2 import M2I2ForPretraining, M2I2ForVisualQuestionAnswering
from m2i2.cli.convert import main as convert
from m2i2.cli.make_shards import main as make_shards
from tests.launching import succeed

ARTEFACTS = Path(__file__).with_name("artefacts")
PRETRAINED, FINETUNED = "pretraining_run", "finetuning_run"
FREE = {"max_steps", "save_every", "log_every"}
"""Settings of section training that these tests change."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the artefacts, where each run believes itself to be."""
    return shutil.copytree(ARTEFACTS, tmp_path / "artefacts")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def resume(launcher: str, run: str, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Let a run go to its end by the settings that it stored; returns the new rows of its log."""
    before = rows(folder / run / "log.jsonl")
    settings = json.loads((folder / run / "settings.json").read_text())
    words = ["--config", f"{run}/settings.json", "--output", run, "training.max_steps=0", "training.log_every=1"]
    out = succeed(launcher, words, folder, ranks)
    assert f"Resuming after step {before[-1]['step']}" in out and "Done:" in out
    after = rows(folder / run / "log.jsonl")
    assert after[: len(before)] == before, "what was logged stays"
    new = after[len(before) :]
    last = int(newest(folder / run).name.removeprefix("step-"))
    assert [row["step"] for row in new] == list(range(before[-1]["step"] + 1, last + 1))
    assert all(math.isfinite(value) for row in new for value in row.values() if isinstance(value, int | float))
    assert_still_there(settings, json.loads((folder / run / "settings.json").read_text()))
    return new


def assert_still_there(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Every setting of the old run is among the new ones, with the same value unless the test changed it."""
    for name, value in old.items():
        if isinstance(value, dict):
            assert_still_there(value, new[name])
        elif name not in FREE:
            assert new[name] == value, name


def assert_logged(new: Sequence[dict[str, Any]], recorded: Sequence[dict[str, float]]) -> None:
    """The losses are those with which version 0.1 went on, but for rounding and for the draws of negatives (new in 0.2)."""
    assert len(new) == len(recorded)
    for row, expected in zip(new, recorded, strict=True):
        drawn = {"itm", "loss"} if "itm" in expected else set[str]()
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=0.05 if name in drawn else 4e-3), (row["step"], name)
        if drawn:
            assert row["loss"] == pytest.approx(sum(row[name] for name in ("mim", "mlm", "itm", "itc")), abs=1e-4)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """How version 0.1 went on with these runs."""
    return json.loads((ARTEFACTS / "resumed.json").read_text())


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_pretraining_run_goes_on(folder: Path, ranks: int, recorded: dict[str, Any]) -> None:
    validated = rows(folder / PRETRAINED / "validation.jsonl")
    new = resume("pretrain", PRETRAINED, folder, ranks)
    assert new[-1]["step"] == 15
    assert_logged(new, recorded["pretraining"])
    after = rows(folder / PRETRAINED / "validation.jsonl")
    assert [row["step"] for row in after] == [4, 8, 12, 15]
    for row, before in zip(after, validated, strict=False):  # version 0.1 measures the step that it resumes after once more
        assert row == pytest.approx(before, abs=1e-4)


def test_the_finetuning_run_goes_on(folder: Path, recorded: dict[str, Any]) -> None:
    new = resume("finetune", FINETUNED, folder, 1)
    assert new[-1]["step"] == 220
    assert_logged(new, recorded["finetuning"])


def test_finetuning_starts_from_the_pretraining_run(folder: Path) -> None:
    words = ["--preset", "tiny", "--checkpoint", PRETRAINED, "--shards", "question_shards", "--output", "again"]
    few = ["vision.image_size=32", "training.batch=8", "training.max_steps=2", "training.log_every=1", "data.workers=0"]
    out = succeed("finetune", [*words, *few], folder)
    assert f"all weights from {PRETRAINED}/checkpoints/step-00000008: 101 tensors loaded" in out
    assert [row["step"] for row in rows(folder / "again" / "log.jsonl")] == [1, 2]
    for name in ("vocab.txt", "tokenizer.json"):
        assert (newest(folder / "again") / "tokenizer" / name).read_bytes() == (
            newest(folder / PRETRAINED) / "tokenizer" / name
        ).read_bytes()


def test_the_finetuned_model_answers_as_it_did(folder: Path) -> None:
    words = ["--checkpoint", FINETUNED, "--shards", "question_shards", "--precision", "float32", "--output", "again"]
    succeed("evaluate", words, folder)
    old, new = (rows(folder / name / "predictions.jsonl") for name in ("evaluation", "again"))
    assert len(new) == len(old) == 31
    for row, before in zip(new, old, strict=True):
        assert {**row, "best": None} == {**before, "best": None}
        assert [score for _, score in row["best"]] == pytest.approx([score for _, score in before["best"]], abs=1e-4)
    old_results, new_results = (json.loads((folder / name / "results.json").read_text()) for name in ("evaluation", "again"))
    assert new_results["candidates"] == old_results["candidates"]
    assert new_results["protocol"]["name"] == old_results["protocol"]["name"]
    assert set(new_results["protocol"]["habits"]) < set(old_results["protocol"]["habits"]), "nothing published of synthetic images"
    assert new_results["normalisation"] == "official", "the form that it was trained in"
    assert_scored_as_before(new_results["views"], old_results["views"])


def assert_scored_as_before(new: dict[str, Any], old: dict[str, Any]) -> None:
    """The same accuracies and counts; an interval may be wider (few images), never narrower; the form `fixed` is another now."""
    assert set(new) - {"question_words"} == set(old), "a later baseline"
    for name, value in old.items():
        if name == "interval" and value is not None:
            assert new[name][0] <= value[0] and value[1] <= new[name][1]
        elif isinstance(value, dict):
            assert_scored_as_before(new[name], value)
        elif name != "fixed":
            assert new[name] == value, name


def weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, an official file or a Hugging Face folder, by file and name."""
    if path.is_file():
        return torch.load(path, weights_only=True)["model"]
    files = [file for file in sorted(path.glob("*.safetensors")) if file.stem != "optimizer"]
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert sorted(ours) == sorted(theirs) and len(ours) > 50
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("run", [PRETRAINED, FINETUNED])
def test_checkpoints_convert_there_and_back(folder: Path, run: str) -> None:
    old, official, back = newest(folder / run), folder / "official.pth", folder / "back"
    assert convert([str(folder / run), "--to", "official", "--output", str(official)]) == 0
    tokenizer = ["--tokenizer", str(old / "tokenizer"), "--heads", "2"]
    assert convert([str(official), "--to", "checkpoint", "--output", str(back), *tokenizer]) == 0
    lost = {"queue image_ids", "queue text_ids"}  # the official file has no place for them
    ours, theirs = weights(old), weights(back)
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert name in lost or torch.equal(tensor, theirs[name]), name
    assert convert([str(back), "--to", "official", "--output", str(folder / "again.pth")]) == 0
    assert_same_bits(folder / "again.pth", official)


def test_the_hugging_face_folder_converts_back(folder: Path) -> None:
    assert convert([str(folder / "hugging_face"), "--to", "checkpoint", "--output", str(folder / "back")]) == 0
    assert_same_bits(folder / "back", newest(folder / FINETUNED))
    assert convert([str(folder / FINETUNED), "--to", "hugging-face", "--output", str(folder / "hub")]) == 0
    assert_same_bits(folder / "hub", folder / "hugging_face")
    assert convert([str(folder / PRETRAINED), "--to", "hugging-face", "--output", str(folder / "pretrained")]) == 0
    assert M2I2ForPretraining.from_pretrained(folder / "pretrained").num_parameters() > 1000


def test_the_hugging_face_folder_answers_as_it_did() -> None:
    model = M2I2ForVisualQuestionAnswering.from_pretrained(ARTEFACTS / "hugging_face")
    for asked in json.loads((ARTEFACTS / "answers.json").read_text()):
        found = model.answer(ARTEFACTS / asked["image"], asked["question"], asked["candidates"])
        assert [answer for answer, _ in found] == [answer for answer, _ in asked["answers"]]
        assert [score for _, score in found] == pytest.approx([score for _, score in asked["answers"]], abs=1e-5)


def test_the_shards_are_whole() -> None:
    for name in ("caption_shards", "question_shards"):
        assert make_shards(["verify", str(ARTEFACTS / name)]) == 0
