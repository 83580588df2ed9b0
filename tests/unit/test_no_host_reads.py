"""A step reads nothing back from its device: on tensors without values any such read raises.

What a step would wait for on a GPU: ``.item()``, ``nonzero``, a Python branch on a tensor. On several ranks one read is left: the
plan of fetching other ranks' hard negatives (`m2i2.distributed.RowExchange`), before the backward pass.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from m2i2.backends.choice import choose
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch, CaptionBatch, QuestionBatch
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.objectives.registry import BUILT_IN
from m2i2.objectives.states import States
from m2i2.options import override
from m2i2.performance.training import drawn_captions, drawn_questions
from m2i2.presets import preset
from m2i2.tasks.copies import HalfCopies
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key, Task
from m2i2.tasks.vqa import VQATask
from m2i2.training.deepspeed.configuration import Partitioning
from m2i2.training.local import LocalEngine
from m2i2.training.zero import ZeroEngine

FINETUNING = preset("tiny")[1]
PRETRAINING = override(preset("tiny")[0], ["objectives.queue=512"])
READS = (DataDependentOutputException, DynamicOutputShapeException)


@pytest.fixture
def valueless() -> Iterator[tuple[CaptionBatch, QuestionBatch]]:
    """A batch of captions and one of questions. Their tensors, and all that are made meanwhile, have no values."""
    captions, questions = drawn_captions(PRETRAINING, 4, 24), drawn_questions(FINETUNING, 4, 12, 6)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield captions.each(mode.from_tensor), questions.each(mode.from_tensor)


def step(task: Task, batch: object) -> None:
    """All that a task does in an optimizer step."""
    task.begin_step(500, 1000)
    task.forward(batch, Key(0, 500, 0)).loss.backward()
    assert all(p.grad is not None for p in task.student.parameters() if p.requires_grad)
    task.end_step()


def pretraining() -> PretrainingTask:
    student = PretrainingModel(PRETRAINING.vision, PRETRAINING.text, PRETRAINING.objectives)
    return PretrainingTask(student, PRETRAINING, torch.float32)


def test_a_pretraining_step_reads_nothing(valueless: tuple[CaptionBatch, QuestionBatch]) -> None:
    step(pretraining(), valueless[0])


def test_a_finetuning_step_reads_nothing(valueless: tuple[CaptionBatch, QuestionBatch]) -> None:
    step(VQATask(VQAModel(FINETUNING.vision, FINETUNING.text), FINETUNING, torch.float32), valueless[1])


def _item(states: States) -> Tensor:
    return states.contrast.loss * states.image_features.mean().item()


def _nonzero(states: States) -> Tensor:
    return states.image_features[states.image_features[:, 0] > 0].sum()


def _branch(states: States) -> Tensor:
    return states.contrast.loss if states.contrast.loss > 1 else states.image_features.sum()


def _whole_step(kind: type[Any], precision: str, batch: Batch, stage: int = 0) -> None:
    """A step by the trainer's own parts, with the engine of one rank or that of a ``stage`` of ZeRO."""
    config = PRETRAINING if kind is PretrainingConfig else FINETUNING
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    task: Task
    if isinstance(config, PretrainingConfig):
        task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, dtype)
    else:
        task = VQATask(VQAModel(config.vision, config.text), config, dtype)
    optimizer, kernels = replace(config.optimizer, clip=1.0), choose(torch.device("cpu"))
    partitioning = Partitioning(stage, 50_000, 50_000, True)
    engine = (
        ZeroEngine(task.student, optimizer, kernels, 1, partitioning) if stage else LocalEngine(task.student, optimizer, kernels, 1)
    )
    task.placed()
    if dtype == torch.bfloat16:
        engine.copies = HalfCopies((task.student, *task.beside.values()), dtype)
    task.begin_step(500, 1000)
    task.begin_micro_batch(Key(0, 500, 0))
    output = engine.forward(lambda: task.compute(batch))
    engine.backward(output.loss)
    assert engine.micro_step()
    task.end_step(engine.applied)


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_a_whole_step_reads(kind: type[Any], precision: str, valueless: tuple[CaptionBatch, QuestionBatch]) -> None:
    """Losses, gradients, clipping, AdamW, teacher and queue."""
    _whole_step(kind, precision, valueless[0] if kind is PretrainingConfig else valueless[1])


@pytest.mark.parametrize("stage", [1, 2])
def test_nothing_of_a_step_of_several_ranks_reads(stage: int, valueless: tuple[CaptionBatch, QuestionBatch]) -> None:
    """By NCCL's collectives, which here move nothing: sums of gradients, norm over the ranks, clipping, AdamW, weights."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        _whole_step(FinetuningConfig, "bfloat16", valueless[1], stage)
    finally:
        dist.destroy_process_group()


def test_a_read_planted_in_the_update_is_found(
    valueless: tuple[CaptionBatch, QuestionBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    divisor = LocalEngine._divisor
    monkeypatch.setattr(LocalEngine, "_divisor", lambda engine, norm: divisor(engine, norm) if norm > 1 else None)
    with pytest.raises(READS):
        _whole_step(FinetuningConfig, "bfloat16", valueless[1])


@pytest.mark.parametrize("planted", [_item, _nonzero, _branch])
def test_a_planted_read_is_found(
    planted: object, valueless: tuple[CaptionBatch, QuestionBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, "itc", (planted, frozenset()))  # type: ignore[arg-type]
    with pytest.raises(READS):
        step(pretraining(), valueless[0])
