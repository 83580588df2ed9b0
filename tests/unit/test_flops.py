"""The analytic count of operations against PyTorch's own counter, and against the specification's figure."""

from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.models.flops import finetuning_flops, pretraining_flops, second_encoding_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.performance.training import drawn_captions, drawn_questions
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from m2i2.tasks.vqa import VQATask

ROWS = 4
Config = TypeVar("Config", PretrainingConfig, FinetuningConfig)


def counted() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def test_a_paper_size_pair_needs_261_gflop() -> None:
    assert sum(pretraining_flops(preset("paper")[0], 25, 8).values()) == pytest.approx(261e9, rel=0.01)


def with_width(config: Config, width: int) -> Config:
    """With an image encoder as wide as that; the text of the preset tiny is 128 wide."""
    return replace(config, vision=replace(config.vision, width=width))


@pytest.mark.parametrize("width", [128, 192])
def test_a_pretraining_step_as_pytorch_counts_it(width: int) -> None:
    config = with_width(preset("tiny")[0], width)
    student = PretrainingModel(config.vision, config.text, config.objectives)
    task = PretrainingTask(student, config, torch.float32)
    batch = drawn_captions(config, ROWS, 20)
    with counted() as counter, sdpa_kernel(SDPBackend.MATH):
        task.forward(batch, Key(0, 0, 0)).loss.backward()
    asked = len(batch.places) / ROWS  # with those that fill up the capacity
    expected = ROWS * sum(pretraining_flops(config, 20, ROWS, asked).values())
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


class Total(TorchDispatchMode):
    """PyTorch's counter without its hooks on modules, which gradients of chosen tensors do not get along with."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def test_an_accumulated_step_as_pytorch_counts_it() -> None:
    config = with_width(preset("tiny")[0], 192)
    config = replace(config, training=replace(config.training, accumulation=4))
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, torch.float32)
    batches = [drawn_captions(config, ROWS // 2, 20) for _ in range(4)]
    with Total() as counter, sdpa_kernel(SDPBackend.MATH):
        task.forward_together(batches, Key(0, 0, 0))
    rows, asked = 2 * ROWS, sum(len(batch.places) for batch in batches) / (2 * ROWS)
    of_pair = sum(pretraining_flops(config, 20, rows, asked).values()) + second_encoding_flops(config, 20)
    assert counter.flops == pytest.approx(rows * of_pair, rel=0.01)


@pytest.mark.parametrize("width", [128, 192])
def test_a_finetuning_step_as_pytorch_counts_it(width: int) -> None:
    config = with_width(preset("tiny")[1], width)
    student = VQAModel(config.vision, config.text)
    task, batch = VQATask(student, config, torch.float32), drawn_questions(config, ROWS, 12, 6)
    with counted() as counter, sdpa_kernel(SDPBackend.MATH):
        task.forward(batch, Key(0, 0, 0)).loss.backward()
    assert counter.get_total_flops() == pytest.approx(ROWS * sum(finetuning_flops(config, 12, 6).values()), rel=0.01)
