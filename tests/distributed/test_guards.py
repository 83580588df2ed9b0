"""Steps that are not finite are skipped on every rank, named, counted and bounded; and so are unreadable samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from m2i2.cli.make_shards import main as make_shards
from m2i2.config import PretrainingConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import rank
from m2i2.errors import M2I2Error
from m2i2.presets import preset
from m2i2.tasks.negatives import Negatives
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key, Output
from tests.distributed.processes import on_ranks
from tests.distributed.training_runs import run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards") / "captions"
    assert make_shards(["captions", "phantoms", "--output", str(folder), "--count", "64", "--side", "64"]) == 0
    return folder


def settings(shards: Path, **training: Any) -> PretrainingConfig:
    base = preset("tiny")[0]
    return replace(
        base,
        objectives=replace(base.objectives, queue=24),
        data=replace(base.data, shards=(str(shards),), workers=0),
        training=replace(base.training, batch=8, epochs=1, log_every=1, save_every=1, keep=99, precision="float32", **training),
    )


class NotFinite(PretrainingTask):
    """Rank 1 meets a NaN in its word loss at some steps, an infinite image loss with a finite gradient at others."""

    bad_words: tuple[int, ...] = (2, 3)
    bad_images: tuple[int, ...] = (5,)

    step = 0

    def begin_micro_batch(self, key: Key) -> None:
        super().begin_micro_batch(key)
        self.step = key.step

    def compute(self, batch: CaptionBatch, negatives: Negatives | None = None) -> Output:
        loss, losses, features = super().compute(batch, negatives)
        if rank() == 1 and self.step in self.bad_words:
            losses["mlm"] = losses["mlm"] * torch.nan
            loss = loss + losses["mlm"]
        if rank() == 1 and self.step in self.bad_images:
            losses["mim"] = losses["mim"].detach() + torch.inf
            loss = loss + losses["mim"]
        return Output(loss, losses, features)


class Hopeless(NotFinite):
    """Every step from the third on is not finite."""

    bad_words = tuple(range(2, 1000))


def _skip(rank: int, ranks: int, shards: Path, folder: Path) -> int:
    return run(settings(shards), folder, NotFinite)


def _give_up(rank: int, ranks: int, shards: Path, folder: Path) -> str:
    with pytest.raises(M2I2Error) as caught:
        run(settings(shards, max_nonfinite=3), folder, Hopeless)
    return str(caught.value)


def model(folder: Path, step: int, name: str = "model") -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_that_is_not_finite_changes_nothing(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert on_ranks(2, _skip, shards, folder) == [0, 0]
    saved = sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*"))
    assert saved == [1, 2, 5, 7, 8]  # none while steps are being skipped
    state = json.loads((folder / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert (state["skipped_steps"], state["optimizer_steps"]) == (3, 5)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "loss" not in row] == [3, 4, 6]
    queue = model(folder, 5, "queue")
    assert not equal(model(folder, 2), model(folder, 5))
    assert all(torch.isfinite(t).all() for t in queue.values() if t.is_floating_point())
    assert all(torch.isfinite(t).all() for t in model(folder, 8).values())
    assert all(torch.isfinite(t).all() for t in model(folder, 8, "optimizer").values())


def test_too_many_in_a_row_end_the_run_with_sound_weights(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    messages = on_ranks(2, _give_up, shards, folder)
    assert messages[0] == messages[1]
    assert "4 steps in a row up to step 6 were not finite (last: the loss mim, mlm)" in messages[0]
    assert "Step 3: the loss mlm is not finite; the step was skipped (1 so far)." in capfd.readouterr().out
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-00000002"
    assert all(torch.isfinite(t).all() for t in model(folder, 2).values())
