"""One pretraining step in double precision is the official code's, to 1e-9: losses, features, teacher, queue, gradients."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m2i2.data.loading.batch import CaptionBatch
from m2i2.models.pretraining import PretrainingModel
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.teacher import Teacher
from tests.parity.fixture import OBJECTIVES, TEXT, VISION, fitting, largest_difference, tensors

EXACT = 1e-9


def forced(negatives: torch.Tensor) -> torch.Tensor:
    """Noise that makes the draw pick ``negatives``."""
    noise = torch.zeros(4, 4, dtype=torch.float64)
    noise[torch.arange(4), negatives] = 1e6
    return noise


@pytest.fixture(scope="module")
def step(parity_folder: Path) -> SimpleNamespace:
    state, inputs = tensors(parity_folder, "pretrain_state_dict"), tensors(parity_folder, "pretrain_inputs")
    student = PretrainingModel(VISION, TEXT, OBJECTIVES).double()
    student.load_state_dict(dict(fitting(student, state)))
    teacher = Teacher(student)
    teacher.load_state_dict(dict(fitting(teacher, state, "_m")))
    queue = FeatureQueue(24, 16).double()
    queue.image.copy_(state["image_queue"].T)
    queue.text.copy_(state["text_queue"].T)
    queue.pointer.copy_(state["queue_ptr"][0])
    batch = CaptionBatch(
        image=inputs["image"],
        item=torch.arange(4),
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        masked_input_ids=inputs["mlm_input_ids"],
        labels=inputs["mlm_labels"],
        student_noise=inputs["mim_noise_student"],
        teacher_noise=inputs["mim_noise_teacher"],
        image_id=torch.arange(4),
        caption_id=torch.arange(4),
    )
    teacher.update(student, OBJECTIVES.momentum)
    targets = teacher.targets(batch, OBJECTIVES.image_mask_ratio)
    noise = forced(inputs["negative_image_for_text"]), forced(inputs["negative_text_for_image"])
    losses = student(batch, targets, queue, noise, 0.4)
    (losses["mim"] + losses["mlm"] + losses["itm"] + losses["itc"] + losses["unused"]).backward()
    queue.push(targets.image_features, targets.text_features, batch.image_id, batch.caption_id)
    official = tensors(parity_folder, "pretrain_outputs")
    return SimpleNamespace(student=student, teacher=teacher, queue=queue, targets=targets, losses=losses, official=official)


@pytest.mark.parametrize("name", ["mim", "mlm", "itm", "itc"])
def test_losses(step: SimpleNamespace, name: str) -> None:
    assert largest_difference(step.losses[name], step.official[f"loss_{name}"]) < EXACT


def test_features_and_matching_logits(step: SimpleNamespace) -> None:
    found = {
        "image_feat": step.losses["image_features"],
        "text_feat": step.losses["text_features"],
        "image_feat_m": step.targets.image_features,
        "text_feat_m": step.targets.text_features,
        "itm_logits": step.losses["itm_logits"],
    }
    for name, tensor in found.items():
        assert largest_difference(tensor, step.official[name]) < EXACT, name


def test_queue(step: SimpleNamespace) -> None:
    assert largest_difference(step.queue.image.T, step.official["image_queue_after"]) < EXACT
    assert largest_difference(step.queue.text.T, step.official["text_queue_after"]) < EXACT
    assert int(step.queue.pointer) == int(step.official["queue_ptr_after"])


def test_teacher(step: SimpleNamespace) -> None:
    state = step.teacher.state_dict()
    recorded = {k: v for k, v in step.official.items() if k.startswith("teacher_after.")}
    assert len(recorded) == 23
    for key, official in recorded.items():
        head, _, tail = key.removeprefix("teacher_after.").partition(".")
        assert largest_difference(state[f"{head.removesuffix('_m')}.{tail}"], official) < EXACT, key


def test_every_gradient(step: SimpleNamespace) -> None:
    recorded = {k.removeprefix("grad."): v for k, v in step.official.items() if k.startswith("grad.")}
    ours = {k: p for k, p in step.student.named_parameters() if p.requires_grad}
    assert sorted(recorded) == sorted(ours), "the same parameters are trained"
    for name, official in recorded.items():
        assert ours[name].grad is not None, name
        assert largest_difference(ours[name].grad, official) < EXACT, name
