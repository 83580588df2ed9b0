"""A recorded step, replayed, computes what the step computes: nothing of the host is baked into the recording.

No GPU is needed: `Tape` records the operations themselves and does them again on the same memory, as a CUDA graph does. What is
specific to CUDA (streams, pools, capture) is tested with ``--device cuda``.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from m2i2.backends.graphs import Losses
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.data.loading.sampling import Share
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.objectives.registry import BUILT_IN
from m2i2.objectives.states import States
from m2i2.options import from_dict, to_dict
from m2i2.performance.training import DrawnBatches, drawn_captions, drawn_questions
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Task
from m2i2.tasks.vqa import VQATask
from m2i2.training import trainer as trainer_module
from m2i2.training.ahead import Ahead
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from tests.golden import cases

FROM_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.nonzero.default}
"""Reads by the host, and values of the host: neither can be recorded."""
BATCHES = (12, 12, 16, 12, 16, 12)
"""Lengths in tokens, one per step."""


class Tape(TorchDispatchMode):
    """A recorder for CPUs: every operation with the tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self.recordings = 0
        self.touched: Callable[[], Iterable[Tensor]] = list
        """All that the work changes; set before the first step."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FROM_HOST:
            raise RuntimeError(f"{function} depends on the host")
        found = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, found))
        return found

    def run(self, work: Callable[[], Losses]) -> Losses:
        return work()

    def record(self, work: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
        # recording does the work: what it changes is put back, because a CUDA graph's recording changes nothing
        kept = {id(t): (t, t.detach().clone()) for t in self.touched()}
        self._operations, drawn = [], torch.get_rng_state()
        try:
            with self:
                losses = work()
        finally:
            for tensor, value in kept.values():
                tensor.detach().copy_(value)
            torch.set_rng_state(drawn)
        operations, self._operations = self._operations, []
        self.recordings += 1
        return lambda: replay(operations), losses


def replay(operations: list[tuple[Any, Any, Any, Any]]) -> None:
    """Do every operation again; what it returns goes where it was when it was recorded."""
    with torch.no_grad():
        for function, args, kwargs, recorded in operations:
            inputs = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            places = [t for t in pytree.tree_leaves(recorded) if isinstance(t, Tensor)]
            if places and not function._schema.is_mutable and all(t.untyped_storage()._cdata in inputs for t in places):
                continue  # a view of memory that is there already
            found = [t for t in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(t, Tensor)]
            for place, value in zip(places, found, strict=True):
                if place.untyped_storage()._cdata not in inputs:
                    place.copy_(value)


def trained(config: PretrainingConfig | FinetuningConfig, tape: Tape | None) -> tuple[Trainer, list[Losses]]:
    """A trainer after a step for each of `BATCHES`, recorded on ``tape`` or not, and its losses."""
    torch.manual_seed(0)
    runtime = Runtime.start(config.training)
    task: Task
    if isinstance(config, PretrainingConfig):
        task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, runtime.dtype)
        drawn: list[Batch] = [drawn_captions(config, 4, tokens) for tokens in BATCHES]
    else:
        task = VQATask(VQAModel(config.vision, config.text), config, runtime.dtype)
        drawn = [drawn_questions(config, 4, tokens, 6) for tokens in BATCHES]
    batches = iter(drawn)
    with pytest.MonkeyPatch.context() as patch:
        if tape:
            patch.setattr(trainer_module, "recorder", lambda *_: (tape, ""))
        share = DrawnBatches(Share(4, 1, 0, 1), lambda: next(batches))
        trainer = Trainer(config, task, share, runtime, Path(), lambda folder: None)  # type: ignore[arg-type]
    if tape:
        tape.touched = lambda: state_of(trainer)
    trainer.done = 498  # the share of soft targets and the learning rate change from step to step
    return trainer, [trainer.step().losses[0] for _ in BATCHES]


def state_of(trainer: Trainer) -> list[Tensor]:
    """All that a step changes."""
    engine: Any = trainer.engine
    modules = (trainer.task.student, *trainer.task.beside.values())
    kept = [t for module in modules for t in module.state_dict().values()] + [engine.applied]
    for flat in engine._flats:
        kept += [flat.gradient, *(t for t in engine._optimizer.state.get(flat.data, {}).values() if isinstance(t, Tensor))]
    return kept


def settings(kind: type[Any], **training: Any) -> Any:
    """A minute model with dropout and clipping, batches of 4."""
    stored = to_dict(preset("tiny")[0 if kind is PretrainingConfig else 1])
    stored["vision"] |= cases.VISION
    stored["text"] |= {**cases.TEXT, "dropout": 0.1}
    stored["training"] |= {"batch": 4, "accumulation": 1, "precision": "float32", **training}
    stored["optimizer"] |= {"clip": 0.5}
    if kind is FinetuningConfig:
        stored["answering"] |= {"distillation": 0.4}
    else:
        stored["objectives"] |= {"queue": 48, "projection": 8}
    return from_dict(kind, stored)


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_steps_are_the_steps(kind: type[Any], precision: str) -> None:
    config = settings(kind, precision=precision)
    tape = Tape()
    (plain, losses), (taped, replayed) = trained(config, None), trained(config, tape)
    assert tape.recordings == 2, "one for each shape"
    for one, other in zip(losses, replayed, strict=True):
        assert {name: float(loss) for name, loss in one.items()} == {name: float(loss) for name, loss in other.items()}
    for one_tensor, other_tensor in zip(state_of(plain), state_of(taped), strict=True):
        assert torch.equal(one_tensor, other_tensor)


def test_a_step_that_is_not_finite_changes_nothing_in_a_replay() -> None:
    config = settings(PretrainingConfig)
    trainer, _ = trained(config, tape := Tape())
    before = [t.clone() for t in state_of(trainer)]
    with torch.no_grad():
        bias = trainer.task.student.get_parameter("itm_head.bias")
        kept = bias.clone()
        bias.fill_(torch.inf)
    trainer._batches = Ahead(iter([drawn_captions(config, 4, BATCHES[-1])]), trainer.runtime.device)
    result = trainer.step()
    with torch.no_grad():
        bias.copy_(kept)
    assert tape.recordings == 2 and not result.applied and trainer.nonfinite.skipped == 1
    for name, old, new in zip(range(len(before)), before, state_of(trainer), strict=True):
        assert torch.equal(old, new) or new is trainer.engine.applied, name


def _reads_the_host(states: States) -> Tensor:
    return states.contrast.loss * states.image_features.mean().item()


def _brings_a_number(states: States) -> Tensor:
    return states.contrast.loss * torch.tensor(2.0)


@pytest.mark.parametrize("planted", [_reads_the_host, _brings_a_number])
def test_what_cannot_be_recorded_is_done_without(planted: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(BUILT_IN, "itc", (planted, frozenset()))
    config = settings(PretrainingConfig)
    tape = Tape()
    (plain, losses), (taped, others) = trained(config, None), trained(config, tape)
    assert not tape.recordings and capsys.readouterr().out.count("cannot be recorded as graphs") == 1
    assert [float(one["loss"]) for one in losses] == [float(other["loss"]) for other in others]
    for one_tensor, other_tensor in zip(state_of(plain), state_of(taped), strict=True):
        assert torch.equal(one_tensor, other_tensor)
