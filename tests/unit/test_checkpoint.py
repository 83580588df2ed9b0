"""Checkpoints are complete or passed over, with the reason; old ones go."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m2i2.errors import M2I2Error
from m2i2.files import sha256_of
from m2i2.training.checkpoint import Checkpoints, copy_into, flaw, read_tensors
from m2i2.training.tensor_files import write_tensors


def write(folder: Path) -> dict[str, str]:
    digest = write_tensors(folder / "model.safetensors", {"a": torch.arange(4.0), "b": torch.ones(2, 2)})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("word\n")
    return {"model.safetensors": digest}


def test_saved_loaded_and_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (5, 10, 15):
        checkpoints.put(step, write)
    assert [p.name for p in checkpoints.all()] == ["step-00000015", "step-00000010"]
    newest, passed_over = checkpoints.newest()
    assert newest == checkpoints.all()[0]
    assert passed_over == {}
    assert read_tensors(newest / "model.safetensors")["a"].tolist() == [0, 1, 2, 3]


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2, keep_every=10)
    for step in range(5, 40, 5):
        checkpoints.put(step, write)
    assert [p.name[-2:] for p in checkpoints.all()] == ["35", "30", "20", "10"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: (p / "manifest.json").unlink(), "the save did not finish"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: (p / "tokenizer" / "vocab.txt").write_text("wort\n"), "does not match its hash"),
        (lambda p: os.truncate(p / "model.safetensors", 10), "has 10 bytes"),
        (
            lambda p: (p / "manifest.json").write_text(json.dumps({"format": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}})),
            "names a file outside it",
        ),
    ],
)
def test_what_is_incomplete_is_passed_over(tmp_path: Path, damage: object, reason: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.put(1, write)
    newest = checkpoints.put(2, write)
    assert callable(damage)
    damage(newest)
    assert reason in flaw(newest)
    found, passed_over = checkpoints.newest()
    assert found is not None
    assert found.name == "step-00000001"
    assert list(passed_over) == ["step-00000002"]
    assert reason in passed_over["step-00000002"]
    assert checkpoints.set_aside("step-00000002").name == "step-00000002.damaged"
    assert checkpoints.newest() == (found, {})


def test_a_save_that_fails_leaves_the_previous_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.put(1, write)

    def fail(folder: Path) -> dict[str, str]:
        write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.put(2, fail)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["latest", "step-00000001"]
    assert (tmp_path / "c" / "latest").read_text() == "step-00000001\n"
    assert flaw(checkpoints.all()[0]) == ""


def test_files_are_those_of_the_library_to_the_byte(tmp_path: Path) -> None:
    shared = torch.randn(5, 4)
    tensors = {
        "z": torch.randn(3, 2).t(),
        "ä": torch.arange(7),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(2.0),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False, True]),
        "double": torch.randn(2).double(),
        "shared": shared,
        "again": shared,
        "part": shared[1:, 1:],
    }
    digest = write_tensors(tmp_path / "ours", tensors)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == sha256_of(tmp_path / "theirs")


def test_a_state_that_does_not_fit_lists_why() -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(M2I2Error, match=r"bias is missing; extra is unknown; weight is \(2, 2\), not \(3, 2\)"):
        copy_into(module, {"weight": torch.zeros(2, 2), "extra": torch.zeros(1)}, "the file")
