"""What our code makes of a folder's inputs, under the names of the folder's outputs: all contact with the models is here."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from m2i2.data.loading.batch import CaptionBatch, QuestionBatch
from m2i2.data.loading.masking import places_of
from m2i2.inference.ranking import rank_official
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import of_student, of_teacher, to_answering
from m2i2.objectives.answers import answer_loss
from m2i2.objectives.registry import active
from m2i2.tasks.negatives import GlobalBatch, Negatives
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.states import PretrainingStates
from m2i2.tasks.teacher import Teacher, VQATeacher
from tests.parity.fixture import Sizes, fitting, sizes, tensors

CPU = torch.device("cpu")


def pretraining_step(folder: Path, device: torch.device = CPU) -> dict[str, Tensor]:
    """One pretraining step: losses, features, matching logits, queue, all of the teacher after it and every gradient."""
    model, state, inputs = sizes(folder), tensors(folder, "pretrain_state_dict"), tensors(folder, "pretrain_inputs")
    objectives, rows = model.objectives, len(inputs["image"])
    places = torch.from_numpy(places_of(inputs["mlm_labels"].numpy(), objectives.text_mask_ratio)).to(device)
    inputs = _on(device, inputs)
    student = PretrainingModel(model.vision, model.text, objectives).double().to(device)
    student.load_state_dict(dict(fitting(student, state)))
    teacher = Teacher(student).to(device)
    teacher.load_state_dict(dict(fitting(teacher, state, "_m")))
    queue = FeatureQueue(objectives.queue, objectives.projection).double().to(device)
    queue.image.copy_(state["image_queue"].T)
    queue.text.copy_(state["text_queue"].T)
    queue.pointer.copy_(state["queue_ptr"].reshape(()))
    batch = CaptionBatch(
        image=inputs["image"],
        item=torch.arange(rows, device=device),
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        masked_input_ids=inputs["mlm_input_ids"],
        labels=inputs["mlm_labels"],
        places=places,
        student_noise=inputs["mim_noise_student"],
        teacher_noise=inputs["mim_noise_teacher"],
        image_id=torch.arange(rows, device=device),
        caption_id=torch.arange(rows, device=device),
    )
    teacher.update(student, objectives.momentum)  # the official order: the average moves before it is used
    targets = teacher.targets(batch, objectives.image_mask_ratio)
    global_batch = GlobalBatch.gather(targets, batch, queue, local=False)
    there = torch.ones(rows, dtype=torch.bool, device=device)
    forced = Negatives(inputs["negative_image_for_text"], inputs["negative_text_for_image"], there, there)
    reads = frozenset({"matching", "words"})
    states = PretrainingStates(student, objectives, batch, targets, global_batch, objectives.distillation, forced, reads)
    losses = {one.name: one.loss(states) for one in active(objectives)}
    sum(losses.values(), torch.zeros(())).backward()
    queue.push(global_batch.image, global_batch.text, global_batch.image_ids, global_batch.text_ids)
    after = {}
    for name, tensor in teacher.state_dict().items():
        head, _, tail = name.partition(".")
        after[f"teacher_after.{head}_m.{tail}"] = tensor
    return {
        **{f"loss_{name}": losses[name] for name in ("mim", "mlm", "itm", "itc")},
        "image_feat": states.image_features,
        "text_feat": states.text_features,
        "image_feat_m": targets.image_features,
        "text_feat_m": targets.text_features,
        "itm_logits": states.matching.logits,
        "image_queue_after": queue.image.T,
        "text_queue_after": queue.text.T,
        "queue_ptr_after": queue.pointer,
        **after,
        **_gradients(student, "grad"),
    }


def answering_step(folder: Path, device: torch.device = CPU) -> dict[str, Tensor]:
    """Plain and distilled loss with all gradients, multimodal states (0 at padding), the ranking, and the key surgery's result."""
    model, inputs = sizes(folder), _on(device, tensors(folder, "vqa_inputs"))
    outputs, mask = tensors(folder, "vqa_outputs"), inputs["question_mask"]
    batch = QuestionBatch(
        image=inputs["image"],
        item=torch.arange(len(inputs["image"]), device=device),
        question_ids=inputs["question_ids"],
        question_mask=mask,
        answer_ids=inputs["candidate_ids"][inputs["target_candidate"]],
        answer_mask=inputs["candidate_mask"][inputs["target_candidate"]],
    )
    found: dict[str, Tensor] = {}
    pretraining = tensors(folder, "pretrain_state_dict")
    for kind in ("plain", "distill"):
        student = answering_model(model, tensors(folder, "vqa_state_dict")).to(device)
        share, logits = 0.0, None
        if kind == "distill":
            # the official code starts this teacher from the pretraining teacher, and averages before it uses it
            teacher = VQATeacher(student).to(device)
            teacher.load_state_dict({**teacher.state_dict(), **_teacher_start(pretraining, student)})
            teacher.update(student, model.objectives.momentum)
            share, logits = model.objectives.distillation, teacher.targets(batch)
        written = student.answer_logits(batch.image, batch.question_ids, mask, batch.answer_ids)
        loss = answer_loss(written, batch.answer_ids, batch.answer_mask, logits, share, model.answer_weight)
        loss.backward()
        found |= {f"loss_{kind}": loss, **_gradients(student, f"grad_{kind}")}
    with torch.inference_mode():
        states = student.encode_question(batch.question_ids, mask, student.encode_image(batch.image))
        found["fused_states"] = states * mask.unsqueeze(2)
        k = outputs["rank_topk_ids"].shape[1]
        found["rank_topk_ids"], found["rank_topk_probs"] = rank_official(
            student.text_decoder, states, mask, inputs["candidate_ids"], inputs["candidate_mask"], k
        )
    return found | {f"start.{name}": tensor for name, tensor in surgery(pretraining, student).items()}


def answering_model(model: Sizes, state: Mapping[str, Tensor]) -> VQAModel:
    """An answering model in double precision with an official state."""
    found = VQAModel(replace(model.vision, image_size=model.answering_side), model.text).double()
    found.load_state_dict(dict(fitting(found, state)))
    return found


def surgery(pretraining: Mapping[str, Tensor], model: VQAModel) -> dict[str, Tensor]:
    """A pretraining state as that of an answering model, whose decoder may have more or fewer layers."""
    found = of_student(to_answering(of_student(pretraining), model.text.fusion_layer, model.vision.patches))
    return {name: tensor for name, tensor in found.items() if name in model.state_dict()}


def _teacher_start(pretraining: Mapping[str, Tensor], student: VQAModel) -> dict[str, Tensor]:
    """The answering teacher out of the pretraining teacher; what the surgery leaves out stays the student's.

    A decoder may have more layers than there are multimodal ones. Where image and text differ in width, its keys and values are
    left out. A folder may have kept the biases, which fit: the student shows it, and its teacher has them from the same place.
    """
    theirs, state = of_teacher(pretraining), student.state_dict()
    found = surgery(theirs, student)
    for name in set(state) - set(found):
        layer = re.sub(r"\d+", lambda number: str(int(number[0]) + student.text.fusion_layer), name, count=1)
        source = layer.replace("text_decoder.", "text_encoder.")
        if source in theirs and torch.equal(pretraining[source], state[name].cpu()):
            found[name] = theirs[source]
    return found


def _on(device: torch.device, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in found.items()}


def _gradients(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": p.grad for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}
