"""Checkpoints are written beside the training, and a save that fails ends on every rank."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m2i2.cli.make_shards import main as make_shards
from m2i2.config import PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.training.checkpoint import Checkpoints, flaw
from m2i2.training.stopping import EXIT_STOPPED
from tests.distributed.processes import on_ranks
from tests.distributed.training_runs import narrow, trainer_of


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PretrainingConfig:
    folder = tmp_path_factory.mktemp("saving") / "captions"
    assert make_shards(["captions", "phantoms", "--output", str(folder), "--count", "64", "--side", "32"]) == 0
    base = narrow(folder, workers=0)
    return replace(base, training=replace(base.training, epochs=1, save_every=1000))


def _beside(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> bool:
    trainer = trainer_of(config, folder)
    written, store = threading.Event(), trainer.saver.store_tokenizer

    def wait_and_store(place: Path) -> None:
        assert written.wait(60)
        store(place)

    trainer.saver.store_tokenizer = wait_and_store
    for _ in range(2):
        trainer.step()
    trainer.saver.prepare()
    trainer.saver.begin(trainer.done, trainer._state())
    gathered = trainer.engine.moments() if rank == 0 and ranks == 1 else None
    expected = {f"model {name}": t.clone() for name, t in trainer.task.student.state_dict().items()}
    expected |= {f"queue {name}": t.clone() for name, t in trainer.task.beside["queue"].state_dict().items()}
    expected |= {f"optimizer {name}": t.clone() for name, t in (gathered.tensors if gathered else {}).items()}
    for _ in range(3):  # the write is in flight
        trainer.step()
    assert not trainer.checkpoints.all()
    written.set()
    trainer.saver.finish()
    path = trainer.checkpoints.folder / Checkpoints.name(2)
    if rank == 0:
        found = {
            f"{kind} {k}": t for kind in ("model", "queue", "optimizer") for k, t in load_file(path / f"{kind}.safetensors").items()
        }
        assert not flaw(path)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not torch.equal(found["model temp"], trainer.task.student.state_dict()["temp"]), "training went on"
    return True


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_save_holds_the_step_at_which_it_began(settings: PretrainingConfig, tmp_path: Path, ranks: int) -> None:
    assert all(on_ranks(ranks, _beside, settings, tmp_path / "run"))


def _fail(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> tuple[str, str]:
    trainer = trainer_of(replace(config, training=replace(config.training, save_every=2)), folder)

    def fail(_: Path) -> None:
        raise RuntimeError("a fault of the program")

    trainer.saver.store_tokenizer = fail
    try:
        trainer.run()
    except (RuntimeError, M2I2Error) as e:
        return type(e).__name__, str(e)
    return "", ""


def test_a_fault_in_a_save_reaches_every_rank(settings: PretrainingConfig, tmp_path: Path) -> None:
    first, second = on_ranks(2, _fail, settings, tmp_path / "run")
    assert first == ("RuntimeError", "a fault of the program"), "with its traceback where it happened"
    assert second[0] == "M2I2Error" and "failed: a fault of the program" in second[1]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def _by_time(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> list[int]:
    trainer = trainer_of(replace(config, training=replace(config.training, save_minutes=1e-6, keep=99)), folder)
    trainer.run()
    return sorted(int(path.name.removeprefix("step-")) for path in trainer.checkpoints.all())


def _stopped(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> tuple[int, list[str]]:
    training = replace(config.training, save_every=3, grace_seconds=1.0, max_steps=6)
    trainer = trainer_of(replace(config, training=training), folder)
    step = trainer.step

    def disturbed() -> object:
        if trainer.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            trainer.saver.finish()
            trainer.saver.seconds = 60.0
        return step()

    trainer.step = disturbed  # type: ignore[assignment,method-assign]
    return trainer.run(), [path.name for path in trainer.checkpoints.all()]


def test_saves_by_time_and_within_the_grace_of_a_signal(settings: PretrainingConfig, tmp_path: Path) -> None:
    assert on_ranks(1, _by_time, settings, tmp_path / "time") == [list(range(1, 9))]
    code, saved = on_ranks(1, _stopped, settings, tmp_path / "grace")[0]
    assert code == EXIT_STOPPED
    assert saved == ["step-00000003"], "a save of 60 s does not begin within a grace of 1 s"
