"""The analytic count of operations against PyTorch's own counter, and against the specification's figure."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m2i2.config import preset
from m2i2.models.flops import finetuning_flops, pretraining_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.performance.training import drawn_captions, drawn_questions
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.teacher import Teacher, VQATeacher

ROWS = 4


def counted() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def test_a_paper_size_pair_needs_261_gflop() -> None:
    assert sum(pretraining_flops(preset("paper")[0], 25, 8).values()) == pytest.approx(261e9, rel=0.01)


def test_a_pretraining_step_as_pytorch_counts_it() -> None:
    config = preset("tiny")[0]
    student = PretrainingModel(config.vision, config.text, config.objectives)
    teacher, queue = Teacher(student), FeatureQueue(config.objectives.queue, config.objectives.projection)
    batch = drawn_captions(config, ROWS, 20)
    batch.image = batch.image.float()
    noise = torch.zeros(ROWS, ROWS)
    with counted() as counter, sdpa_kernel(SDPBackend.MATH):
        losses = student(batch, teacher.targets(batch, 0.15), queue, (noise, noise), 0.4)
        (losses["mim"] + losses["mlm"] + losses["itm"] + losses["itc"]).backward()
    asked = float((batch.labels >= 0).sum()) / ROWS
    expected = ROWS * sum(pretraining_flops(config, 20, ROWS, asked).values())
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_a_finetuning_step_as_pytorch_counts_it() -> None:
    config = preset("tiny")[1]
    student = VQAModel(config.vision, config.text)
    teacher, batch = VQATeacher(student), drawn_questions(config, ROWS, 12, 6)
    batch.image = batch.image.float()
    with counted() as counter, sdpa_kernel(SDPBackend.MATH):
        student(batch, 0.4, teacher.targets(batch), 0.5).backward()
    assert counter.get_total_flops() == pytest.approx(ROWS * sum(finetuning_flops(config, 12, 6).values()), rel=0.01)
