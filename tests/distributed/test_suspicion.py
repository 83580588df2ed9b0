"""A step that looks wrong is computed again: a passing fault leaves no trace; what is there again is skipped, kept or undone."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from m2i2.config import PretrainingConfig, TrainingConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import rank
from m2i2.tasks.negatives import Negatives
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key, Output
from m2i2.training.checkpoint import read_run_state
from m2i2.training.suspicion import GradientNorms, LossBand
from tests.distributed.processes import on_ranks
from tests.distributed.test_checkpoint import settings  # noqa: F401
from tests.distributed.training_runs import run, trainer_of

AT = 20


class Spoilt(PretrainingTask):
    """On the last rank, the loss of some steps is multiplied: the first ``times`` times that it is computed."""

    factors: ClassVar[dict[int, float]] = {AT: torch.nan}
    times, step = 1, 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.computed: Counter[int] = Counter()

    def begin_micro_batch(self, key: Key) -> None:
        super().begin_micro_batch(key)
        self.step = key.step

    def compute(self, batch: CaptionBatch, negatives: Negatives | None = None) -> Output:
        loss, losses, features = super().compute(batch, negatives)
        if rank() == torch.distributed.get_world_size() - 1 and self.step in self.factors:
            self.computed[self.step] += 1
            if self.computed[self.step] <= self.times:
                losses["mlm"] = losses["mlm"] * self.factors[self.step]
                loss = loss * self.factors[self.step]
        return Output(loss, losses, features)


class Passing(Spoilt):
    factors: ClassVar[dict[int, float]] = {AT - 2: torch.nan, AT: 1000.0}


class Again(Spoilt):
    factors: ClassVar[dict[int, float]] = {AT: 1000.0}
    times = 99


def _all(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> list[int]:
    training = replace(config.training, epochs=4, log_every=1, save_every=8, max_steps=24, spike_sigma=20.0)
    back = replace(training, on_spike="rollback")
    cases: dict[str, tuple[type[PretrainingTask], TrainingConfig]] = {
        "plain": (PretrainingTask, training),
        "passing": (Passing, training),
        "back": (Again, back),
        "kept": (Again, training),
    }
    return [run(replace(config, training=one), folder / name, kind) for name, (kind, one) in cases.items()]


def weights(folder: Path, step: int = 24) -> list[bytes]:
    place = folder / "checkpoints" / f"step-{step:08d}"
    return [(place / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer", "teacher", "queue")]


def rows(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "suspicious.jsonl").read_text().splitlines()]


def test_suspicions_are_settled_by_computing_again(
    settings: PretrainingConfig,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert on_ranks(2, _all, settings, tmp_path) == [[0] * 4, [0] * 4]
    said = capfd.readouterr().out
    assert not (tmp_path / "plain" / "suspicious.jsonl").exists()
    assert weights(tmp_path / "passing") == weights(tmp_path / "plain"), "as if nothing had happened"
    for found, step, kind in zip(rows(tmp_path / "passing"), (AT - 1, AT + 1), ("not finite", "spike"), strict=True):
        assert (found["step"], found["kind"], found["applied"]) == (step, kind, True)
        zero, one = found["ranks"]
        assert (zero["differs"], one["differs"]) == (False, True)
        assert one["losses"][0]["mlm"] != one["losses_again"][0]["mlm"] and zero["losses"] == zero["losses_again"]
        assert len(found["items"]) == 8
        assert all(norm > 0 for norm in zero["gradient_norm_by_module"].values())
    assert f"Step {AT - 1} had a loss or gradient that is not finite; it was computed again and has other numbers" in said
    (kept,), (back,) = rows(tmp_path / "kept"), rows(tmp_path / "back")
    assert (kept["applied"], back["applied"]) == (True, False)
    assert weights(tmp_path / "kept") != weights(tmp_path / "plain")
    assert f"steps 17 to {AT + 1} are skipped with their data" in said
    checkpoints = tmp_path / "back" / "checkpoints"
    assert weights(tmp_path / "back", AT + 1)[:1] == weights(tmp_path / "back", 16)[:1]
    state = read_run_state(checkpoints / "step-00000024")
    assert (state["skipped_steps"], state["optimizer_steps"]) == (5, 19)


def _alone(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> bool:
    training = replace(config.training, epochs=4, max_steps=24, accumulation=2)
    plain, spoilt = (
        trainer_of(replace(config, training=training), folder / name, kind)
        for name, kind in (("plain", PretrainingTask), ("nan", Spoilt))
    )
    for trainer in (plain, spoilt):
        trainer._suspicions.begin(0)
        for _ in range(24):
            trainer.step()
    same = all(map(torch.equal, plain.task.student.state_dict().values(), spoilt.task.student.state_dict().values()))
    return same and (folder / "nan" / "suspicious.jsonl").exists()


def test_one_rank_with_accumulation(settings: PretrainingConfig, tmp_path: Path) -> None:  # noqa: F811
    by_micro_batch = replace(settings, objectives=replace(settings.objectives, scope="micro_batch"))
    assert on_ranks(1, _alone, by_micro_batch, tmp_path) == [True]


def test_a_band_holds_noise_and_not_spikes() -> None:
    band = LossBand(10.0, 4)
    for number in range(40):
        assert band.limit == float("inf") if number < 16 else 5.0 < band.limit < 10.0
        band.add(5.0 + 0.1 * (-1) ** number)
    band.add(float("nan"))
    assert len(band.readings) == 40 and LossBand(0.0, 1).limit == float("inf")


def test_gradient_norms_by_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Linear(1, 1))
    with GradientNorms(model.named_parameters()) as norms:
        model(torch.ones(4, 2)).sum().backward()
    expected: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        module = ".".join(name.split(".")[:2])
        assert parameter.grad is not None
        expected[module] = expected.get(module, torch.zeros(())) + parameter.grad.square().sum()
    assert norms.read() == pytest.approx([float(expected[name].sqrt()) for name in norms.modules])
