"""The plan's memory and reduced gradients are those of real runs on 1, 2 and 4 ranks, to 10 %."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from m2i2.backends import shared_memory
from m2i2.config import PretrainingConfig
from m2i2.data.loading.sampling import Share
from m2i2.models.pretraining import PretrainingModel
from m2i2.performance.plan import Machine, parameters, plan
from m2i2.performance.training import DrawnBatches, drawn_captions
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from m2i2.training.flat import FlatEngine
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer
from tests.distributed.processes import on_ranks


def settings() -> PretrainingConfig:
    base = preset("tiny")[0]
    vision = replace(base.vision, width=96, heads=3)  # not as wide as the text
    objectives = replace(base.objectives, queue=512)
    return replace(base, vision=vision, objectives=objectives, training=replace(base.training, batch=8, precision="float32"))


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _step(rank: int, ranks: int) -> dict[str, int]:
    shared_memory.FOLDER = Path("missing")  # the plan is of machines between which gradients travel
    config = settings()
    runtime = Runtime.start(config.training)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, torch.float32)
    drawn = DrawnBatches(Share(8, 1, rank, ranks), lambda: drawn_captions(config, 8 // ranks, 20))
    trainer = Trainer(config, task, drawn, runtime, Path(), lambda folder: None)  # type: ignore[arg-type]
    engine = trainer.engine
    reduced, all_reduce = [], dist.all_reduce

    def counting(tensor: torch.Tensor, *arguments: object, **options: object) -> object:
        reduced.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments, **options)  # type: ignore[arg-type]

    task.begin_step(0, 10)
    batch = drawn_captions(config, 8 // ranks, 20)
    loss = engine.forward(lambda: task.forward(batch, Key(0, 0, 0))).loss
    dist.all_reduce = counting  # type: ignore[assignment]
    try:
        engine.backward(loss)
    finally:
        dist.all_reduce = all_reduce
    engine.micro_step()
    assert isinstance(engine, FlatEngine)
    weights, optimizer = [flat.data.detach() for flat in engine._flats], engine._optimizer
    masters = {part.untyped_storage().data_ptr() for part in engine._parts}
    assert masters <= {t.untyped_storage().data_ptr() for t in weights}, "no second copy of the weights"
    gradients = [part.grad for part in engine._parts if part.grad is not None]
    left = [p for p in task.student.parameters() if p.grad is not None]
    assert ranks == 1 or not left, "of whole gradients nothing is kept"
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    return {
        "parameters": bytes_of(weights),
        "gradients": bytes_of(gradients),
        "optimizer": bytes_of(moments),
        "teacher": bytes_of(list(task.teacher.parameters())),
        "queue": bytes_of(list(task.queue.buffers())),
        "reduced": sum(reduced),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_memory_and_gradients_are_as_planned(ranks: int) -> None:
    planned = plan(settings(), ranks, Machine(1e12, 1e9), rows=8 // ranks, tokens=20)
    for found in on_ranks(ranks, _step):
        for kind in ("parameters", "optimizer", "teacher", "queue"):
            assert found[kind] == pytest.approx(planned.memory[kind], rel=0.1), kind
        assert found["gradients"] == pytest.approx(4 * parameters(settings())[0] / ranks, rel=0.1)
        if ranks > 1:  # NCCL scatters what gloo sums for everyone: a ring sends each byte (N - 1) / N times
            assert (ranks - 1) / ranks * found["reduced"] == pytest.approx(planned.wire["gradients"], rel=0.1)
