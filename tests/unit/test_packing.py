"""A recipe in pieces: whole again on another machine, where what has a record is not run again."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from m2i2.cli.ablate import main as ablate

FILE: dict[str, Any] = {
    "name": "drawn",
    "preset": "tiny",
    "prepare": ["make_shards.py captions phantoms --count 8 --side 32 --workers 1 --output shards/captions"],
    "shards": ["shards/captions"],
    "held_out": ["shards/captions"],
    "epochs": [1],
    "cells": {"reference": {}, "warm": {"settings": ["objectives.temperature=0.2"]}},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "s.json").write_text(json.dumps(FILE))
    (folder / "records").mkdir()
    for cell, score in (("reference", 4.0), ("warm", 5.0)):
        (folder / "records" / f"{cell}-stage-1.json").write_text(json.dumps({"cell": cell, "score": score}))
    words = [str(folder / "s.json"), "--work", str(folder / "work"), "--results", str(folder / "records")]
    weights = folder / "work" / "shards" / "captions"
    weights.mkdir(parents=True)
    safetensors.torch.save_file({"half": torch.randn(4), "count": torch.tensor([7])}, weights / "model.safetensors")
    assert ablate([*words, "--pack", str(folder / "pieces"), "--piece-mb", "1"]) == 0
    return folder / "pieces"


def test_pieces_are_small_enough_and_another_machine_takes_them(packed: Path, tmp_path: Path) -> None:
    pieces = sorted(packed.glob("piece-*"))
    assert len(pieces) > 2 and all(path.stat().st_size == 1_000_000 for path in pieces[:-1])
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "WORK": str(tmp_path / "job"), "PYTHONPATH": ""}
    done = subprocess.run(["bash", str(packed / "run.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 cells of 1 epochs, 0 to run" in done.stdout
    with tarfile.open(tmp_path / "records.tar.gz") as tar:
        names = tar.getnames()
        assert {"records/reference-stage-1.json", "records/README.md"} <= set(names)
    unpacked = safetensors.torch.load_file(tmp_path / "job" / "work" / "shards" / "captions" / "model.safetensors")
    assert unpacked["half"].dtype == torch.float16 and unpacked["count"].tolist() == [7]


def test_a_damaged_piece_is_named(packed: Path, tmp_path: Path) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "piece-001").read_bytes())
    damaged[500] ^= 1
    (tmp_path / "piece-001").write_bytes(damaged)
    done = subprocess.run(["bash", str(tmp_path / "run.sh")], capture_output=True, text=True)
    assert done.returncode != 0 and "piece-001: FAILED" in done.stdout + done.stderr and not (tmp_path / "job").exists()


def test_a_folder_in_use_is_not_written_to(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = packed.parent / "s.json"
    words = [str(recipe), "--work", str(packed.parent / "work"), "--results", str(tmp_path), "--pack", str(packed)]
    assert ablate(words) == 2
    assert "is not empty" in capsys.readouterr().err
