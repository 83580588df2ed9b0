"""What a run that is resumed keeps of the settings with which it began."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.options import override, to_dict
from m2i2.presets import preset
from m2i2.training.checkpoint import seal
from m2i2.training.processes import Process
from m2i2.workflows.run_folder import settled


def begun(folder: Path, config: PretrainingConfig | FinetuningConfig, ranks: int, *, by_version_0_1: bool = False) -> Path:
    """The folder of a run that has saved a checkpoint."""
    stored: dict[str, Any] = {"stage": type(config).__name__, **to_dict(config)}
    if by_version_0_1:
        del stored["objectives"]["scope"]
    checkpoint = folder / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(stored))
    state = {"step": 4, "optimizer_steps": 4, "skipped_steps": 0, "ranks": ranks}
    (checkpoint / "state.json").write_text(json.dumps(state))
    seal(checkpoint)
    return folder


def on(ranks: int) -> Process:
    return Process(0, ranks, torch.device("cpu"))


ACCUMULATED = override(preset("tiny")[0], ["training.accumulation=2"])
BY_MICRO_BATCH = override(ACCUMULATED, ["objectives.scope=micro_batch"])


def test_a_run_keeps_its_kind_of_accumulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path, BY_MICRO_BATCH, 1)
    assert settled(ACCUMULATED, run, on(1)) == BY_MICRO_BATCH
    assert "The run keeps objectives.scope=micro_batch" in capsys.readouterr().out
    assert settled(BY_MICRO_BATCH, run, on(1)) == BY_MICRO_BATCH
    assert not capsys.readouterr().out


def test_a_run_of_version_0_1_keeps_it_too(tmp_path: Path) -> None:
    run = begun(tmp_path / "accumulated", ACCUMULATED, 1, by_version_0_1=True)
    assert settled(ACCUMULATED, run, on(1)) == BY_MICRO_BATCH
    at_once = preset("tiny")[0]
    assert settled(ACCUMULATED, begun(tmp_path / "at once", at_once, 1, by_version_0_1=True), on(1)) == ACCUMULATED


def test_a_presets_batch_fits_the_ranks_with_which_the_run_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = preset("paper")[1]
    three = settled(config, tmp_path, on(3))
    assert three.training.batch == 9
    assert (
        "The batch of preset paper, 8, does not divide by 3 ranks x training.accumulation=1: it is 9 here"
        in capsys.readouterr().out
    )
    run = begun(tmp_path, three, 3)
    assert settled(config, run, on(1)) == three
    assert "The run keeps training.batch=9, with which it began on 3 ranks" in capsys.readouterr().out
    other = begun(tmp_path / "chosen", replace(config, training=replace(config.training, batch=12)), 3)
    assert settled(config, other, on(3)) == config, "the trainer says that this run has other settings"
