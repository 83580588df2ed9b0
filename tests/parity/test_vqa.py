"""The answering model in double precision is the official code's, to 1e-9: states, losses, gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2i2.data.loading.batch import QuestionBatch
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import load, of_student, of_teacher, to_answering
from m2i2.tasks.teacher import VQATeacher
from tests.parity.fixture import TEXT, VISION, fitting, largest_difference, tensors

EXACT = 1e-9


@pytest.fixture
def model(parity_folder: Path) -> VQAModel:
    model = VQAModel(replace(VISION, image_size=96), TEXT).double()
    model.load_state_dict(dict(fitting(model, tensors(parity_folder, "vqa_state_dict"))))
    return model


@pytest.fixture
def batch(parity_folder: Path) -> QuestionBatch:
    inputs = tensors(parity_folder, "vqa_inputs")
    return QuestionBatch(
        image=inputs["image"],
        item=torch.arange(3),
        question_ids=inputs["question_ids"],
        question_mask=inputs["question_mask"],
        answer_ids=inputs["candidate_ids"][inputs["target_candidate"]],
        answer_mask=inputs["candidate_mask"][inputs["target_candidate"]],
    )


def test_multimodal_states(model: VQAModel, batch: QuestionBatch, parity_folder: Path) -> None:
    states = model.encode_question(batch.question_ids, batch.question_mask, model.encode_image(batch.image))
    official = tensors(parity_folder, "vqa_outputs")["fused_states"]
    there = batch.question_mask.bool()
    assert largest_difference(states[there], official[there]) < EXACT


@pytest.mark.parametrize("kind", ["plain", "distill"])
def test_losses_and_gradients(model: VQAModel, batch: QuestionBatch, parity_folder: Path, kind: str) -> None:
    official = tensors(parity_folder, "vqa_outputs")
    logits = None
    if kind == "distill":
        # the official code starts this teacher from the pretraining teacher, and averages before it uses it
        pretraining = of_teacher(tensors(parity_folder, "pretrain_state_dict"))
        teacher = VQATeacher(model)
        load(teacher, of_student(to_answering(pretraining, TEXT.fusion_layer, model.vision.patches)), "the fixture")
        teacher.update(model, 0.995)
        logits = teacher.targets(batch)
    loss = model(batch, 0.4 if kind == "distill" else 0.0, logits, 0.5)
    assert largest_difference(loss, official[f"loss_{kind}"]) < EXACT
    loss.backward()
    gradients = {k.removeprefix(f"grad_{kind}."): v for k, v in official.items() if k.startswith(f"grad_{kind}.")}
    assert len(gradients) > 60
    ours = dict(model.named_parameters())
    for name, gradient in gradients.items():
        assert ours[name].grad is not None, name
        assert largest_difference(ours[name].grad, gradient) < EXACT, name


def test_the_key_surgery_is_the_official_one(model: VQAModel, parity_folder: Path) -> None:
    pretraining = of_student(tensors(parity_folder, "pretrain_state_dict"))
    ours = to_answering(pretraining, TEXT.fusion_layer, model.vision.patches)
    for name, official in model.state_dict().items():
        assert largest_difference(ours[name], official) < EXACT, name
