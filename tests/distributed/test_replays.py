"""A rank that computes wrongly is found by computing a micro-batch again elsewhere; replays change nothing of a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2i2.config import PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.training.checkpoint import Checkpoints
from m2i2.training.replays.known_answers import KnownAnswers
from tests.distributed.processes import on_ranks
from tests.distributed.test_checkpoint import settings  # noqa: F401
from tests.distributed.training_runs import trainer_of

FROM, EVERY, STEPS = 10, 4, 14


def _wrong_from(trainer: Any, rank: int) -> None:
    """From step `FROM` on, one product of a rank is wrong in its last bit."""

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.nextafter(output, output + 1) if trainer.done + 1 >= FROM else output

    if trainer.process.rank == rank:
        trainer.task.student.text_encoder.bert.encoder.layer[0].register_forward_hook(spoil)


def _runs(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> list[str]:
    config = replace(config, text=replace(config.text, dropout=0.1), data=replace(config.data, workers=0))
    training = replace(config.training, batch=4 * ranks, epochs=4, max_steps=STEPS, save_every=3, keep=2)
    assert trainer_of(replace(config, training=replace(training, replay_every=0)), folder / "plain").run() == 0
    config = replace(config, training=replace(training, replay_every=EVERY))
    trainer = trainer_of(config, folder / "replayed")
    assert trainer.run() == 0
    assert trainer._goodput is not None and trainer._goodput.spent["replays"] > 0
    trainer = trainer_of(config, folder / "wrong")
    _wrong_from(trainer, ranks - 1)
    message = _error_of(trainer)
    aside = sorted(path.name for path in trainer.checkpoints.folder.glob("*.suspect"))
    assert trainer_of(config, folder / "wrong").run() == 0
    return [message, *aside]


def _error_of(trainer: Any) -> str:
    """What ends the run."""
    try:
        return f"ended with {trainer.run()}"
    except M2I2Error as error:
        return str(error)


def weights(folder: Path) -> list[bytes]:
    place = folder / "checkpoints" / Checkpoints.name(STEPS)
    return [(place / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer", "teacher", "queue")]


def test_a_rank_that_computes_wrongly_is_named_and_undone(settings: PretrainingConfig, tmp_path: Path) -> None:  # noqa: F811
    found = on_ranks(3, _runs, settings, tmp_path)
    assert all(one == found[0] for one in found), "every rank says the same"
    message, *aside = found[0]
    assert message.startswith("Rank 2 on "), message
    assert "computes wrongly: after step 12, " in message and "The last replay that agreed was after step 8" in message
    assert aside == ["step-00000009.suspect"], "12 was not saved any more"
    row = json.loads((tmp_path / "wrong" / "replays.jsonl").read_text())
    assert row["ranks"] == [2] and row["certain"]
    assert "what it sends to other ranks" in row["what"] and "the gradient of text_encoder.bert" in row["what"]
    assert weights(tmp_path / "replayed") == weights(tmp_path / "plain"), "a replay changes nothing"
    assert weights(tmp_path / "wrong") == weights(tmp_path / "plain"), "and what was computed wrongly is undone"
    assert not (tmp_path / "replayed" / "replays.jsonl").exists()


def _alone(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> str:
    training = replace(config.training, epochs=4, max_steps=12, save_every=5, replay_every=4)
    trainer = trainer_of(replace(config, training=training), folder / "once")
    calls = [0]

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return torch.nextafter(output, output + 1) if calls[0] == 8 else output  # after step 1, and the second time after step 4

    trainer.task.student.text_encoder.bert.encoder.layer[0].register_forward_hook(spoil)
    return _error_of(trainer)


def test_alone_a_result_that_changes_is_found(settings: PretrainingConfig, tmp_path: Path) -> None:  # noqa: F811
    (message,) = on_ranks(1, _alone, settings, tmp_path)
    assert message.startswith("Rank 0 on ") and "computes wrongly: after step 4, " in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_whose_result_is_known(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    linear = torch.nn.functional.linear

    def wrong(x: Tensor, y: Tensor) -> Tensor:
        out = linear(x, y)
        out[3, 7] += 0.5
        return out

    answers = KnownAnswers(torch.device("cpu"), dtype)
    assert not answers.wrong() and not answers.wrong()
    monkeypatch.setattr(torch.nn.functional, "linear", wrong)
    assert answers.wrong() and KnownAnswers(torch.device("cpu"), dtype).wrong()
