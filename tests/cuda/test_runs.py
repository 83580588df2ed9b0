"""Runs on a device: resumed to the bit, killed and resumed, replayed as graphs, on two ranks, and without a read that waits."""

import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from m2i2.backends.graphs import Replayed
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.training.ahead import Ahead
from tests.cuda.runs import losses_of, of_shards, state_of, trainer_of
from tests.distributed.processes import on_ranks
from tests.faults import runs as faults
from tests.unit import test_graphs as graphs


@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(device: torch.device, shards: Path, tmp_path: Path) -> None:
    config = of_shards(shards, precision="bfloat16", half_weights="on")
    torch.set_num_threads(1)
    whole = trainer_of(config, tmp_path / "whole")
    expected = losses_of(whole, 12)
    first = trainer_of(config, tmp_path / "stopped")
    (tmp_path / "stopped").mkdir()
    losses_of(first, 5)
    first.save()
    resumed = trainer_of(config, tmp_path / "stopped")
    resumed.resume()
    assert resumed.done == 5 and resumed.attention == first.attention
    assert losses_of(resumed, 7) == expected[5:]
    mine, theirs = state_of(resumed), state_of(whole)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_a_run_that_is_killed_goes_on(device: torch.device, tmp_path: Path, shards: Path) -> None:
    """SIGKILL in the middle, then the same command again: the run that nothing disturbed."""
    words = [sys.executable, faults.LAUNCHER, "--shards", shards, *faults.SETTINGS, "training.max_steps=24"]
    undisturbed = faults.Watched(words, tmp_path / "undisturbed")
    assert undisturbed.wait(300) == 0, undisturbed.output[-3000:]
    killed = faults.Watched(words, tmp_path / "killed")
    assert killed.wait_until(lambda: faults.steps_logged(killed.run) >= 5), killed.output[-3000:]
    killed.kill_all()
    assert faults.steps_logged(killed.run) < 24, "it was killed before its end"
    again = faults.Watched(words, tmp_path / "killed")
    assert again.wait(300) == 0, again.output[-3000:]
    assert "Resuming after step" in again.output
    mine, theirs = faults.losses(again.run), faults.losses(undisturbed.run)
    assert len(mine) == len(theirs) == 24
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert faults.items(again.run) == faults.items(undisturbed.run)


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("deterministic")
def test_a_graph_is_the_step(kind: type[Any], precision: str, gpu: torch.device) -> None:
    launched, losses = graphs.trained(graphs.settings(kind, precision=precision, graphs=False), None)
    replayed, others = graphs.trained(graphs.settings(kind, precision=precision), None)
    assert isinstance(replayed._work, Replayed) and len(replayed._work._recorded) == 2
    for one, other in zip(losses, others, strict=True):
        assert {name: float(x) for name, x in one.items()} == pytest.approx({n: float(x) for n, x in other.items()}, abs=1e-6)
    for mine, theirs in zip(graphs.state_of(launched), graphs.state_of(replayed), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=1e-6, rtol=0)


def _steps(rank: int, ranks: int, shards: Path) -> tuple[list[dict[str, float]], dict[str, Any]]:
    trainer = trainer_of(of_shards(shards), Path())
    losses = losses_of(trainer, 8)
    return losses, {name: tensor.cpu().numpy() for name, tensor in trainer.task.student.state_dict().items()}


def test_two_ranks_on_one_device_are_one(device: torch.device, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gloo, which carries tensors of a GPU too: ZeRO-2 beside the engine of one rank."""
    monkeypatch.setitem(os.environ, "M2I2_SHARE_GPU", "1")
    ((expected, weights),) = on_ranks(1, _steps, shards)
    found = on_ranks(2, _steps, shards)
    for step, row in enumerate(expected):
        for name, value in row.items():
            mean = sum(losses[step][name] for losses, _ in found) / 2
            assert mean == pytest.approx(value, abs=1e-5), (step, name)
    for _, theirs in found:
        for name, tensor in weights.items():
            assert abs(theirs[name] - tensor).max() < 1e-5, name


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
def test_20_steps_wait_for_nothing(kind: type[Any], recorded: bool, gpu: torch.device) -> None:
    config = graphs.settings(kind, precision="bfloat16", graphs=recorded)
    trainer, _ = graphs.trained(config, None)
    draw = graphs.drawn_captions if kind is PretrainingConfig else lambda *sizes: graphs.drawn_questions(*sizes, 6)
    drawn: list[Batch] = [draw(config, 4, 12).pin_memory() for _ in range(21)]  # type: ignore[operator]
    trainer._batches = Ahead(iter(drawn), gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.nonfinite.skipped == 0


def test_batches_are_sent_ahead_as_they_are(device: torch.device, shards: Path) -> None:
    """With work between them that keeps the device busy."""
    trainer = trainer_of(of_shards(shards), Path())
    expected = list(islice(iter(trainer.loader), 6))
    ahead = Ahead((batch.pin_memory() if device.type == "cuda" else batch for batch in expected), device, ahead=True)
    busy = torch.randn(2048 if device.type == "cuda" else 64, 2048, device=device)
    for one in expected:
        found = next(ahead)
        ahead.send()
        copies = {name: tensor.clone() for name, tensor in found.tensors().items()}
        del found
        busy = (busy @ busy.T)[:, :1] * 0 + busy
        for name, tensor in one.tensors().items():
            assert torch.equal(copies[name].cpu(), tensor), name
    with pytest.raises(StopIteration):
        next(ahead)
