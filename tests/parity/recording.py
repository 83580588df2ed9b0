"""A folder of numbers laid out like the official ones, at any sizes, taken from the plain computation: to check m2i2 with."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from tests.parity.plain import State, Told, answering, pretraining, surgery

Shapes = dict[str, tuple[int, ...]]


def record(folder: Path, told: Told, batch: int, tokens: int, answering_side: int, k: int) -> None:
    """Write model.json with ``told``, random weights and inputs, and what the plain computation makes of them."""
    torch.manual_seed(0)
    (folder / "model.json").write_text(json.dumps(told))
    inputs, questions = drawn_inputs(told, batch, tokens, answering_side)
    state = pretraining_state(told, pointer=told["queue"] - batch)
    shapes = answering_shapes(told, (answering_side // told["patch_size"]) ** 2)
    fresh = drawn(shapes)
    started = {**fresh, **surgery(state, told["fusion_layer"], shapes["visual_encoder.pos_embed"][1] - 1, fresh)}
    _save(folder, "pretrain_inputs", inputs)
    _save(folder, "vqa_inputs", questions)
    _save(folder, "pretrain_state_dict", state)
    _save(folder, "vqa_state_dict", started)
    _save(folder, "pretrain_outputs", pretraining(told, state, inputs))
    _save(folder, "vqa_outputs", answering(told, state, started, questions, k))


def drawn_inputs(told: Told, batch: int, tokens: int, answering_side: int) -> tuple[State, State]:
    """Inputs of the pretraining step and of the answering model; captions and questions are of several lengths."""
    patches = (told["image_size"] // told["patch_size"]) ** 2
    ids = torch.randint(103, told["vocabulary"], (batch, tokens))
    mask = (torch.arange(tokens) < torch.arange(tokens, tokens - batch, -1)[:, None]).long()
    chosen = torch.rand(batch, tokens) < 0.3
    chosen[:, 1] = True
    chosen &= mask.bool()
    inputs = {
        "image": torch.randn(batch, 3, told["image_size"], told["image_size"]).double(),
        "input_ids": ids,
        "attention_mask": mask,
        "mlm_input_ids": ids.masked_fill(chosen, 103),
        "mlm_labels": ids.masked_fill(~chosen, -100),
        "mim_noise_student": torch.rand(batch, patches).double(),
        "mim_noise_teacher": torch.rand(batch, patches).double(),
        "negative_image_for_text": torch.arange(batch).roll(1),
        "negative_text_for_image": torch.arange(batch).roll(-1),
    }
    answers = torch.tensor([[101, 110, 102, 102, 0], [101, 111, 112, 102, 102], [101, 113, 102, 102, 0]])
    questions = {
        "image": torch.randn(2, 3, answering_side, answering_side).double(),
        "question_ids": ids[:2],
        "question_mask": mask[:2],
        "candidate_ids": answers,
        "candidate_mask": (answers != 0).long(),
        "target_candidate": torch.tensor([2, 1]),
    }
    return inputs, questions


def pretraining_state(told: Told, pointer: int) -> State:
    """Random weights of a student and, apart from it, a teacher, and queues."""
    student = drawn(pretraining_shapes(told))
    of_teacher = r"(visual_encoder|text_encoder|vision_proj|text_proj)\.(?!decoder_|mask_token)"
    state = dict(student)
    for name, tensor in student.items():
        if re.match(of_teacher, name):
            noise = 0.02 * torch.randn_like(tensor) if name.endswith(("weight", "bias")) else 0
            state[name.replace(".", "_m.", 1)] = tensor + noise
    queue = normalize(torch.randn(2, told["projection"], told["queue"]).double(), dim=1)
    return {**state, "image_queue": queue[0], "text_queue": queue[1], "queue_ptr": torch.tensor([pointer])}


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Random weights of about a trained model's sizes; the temperature is the official start."""
    found = {name: 0.1 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name in found:
        if re.search(r"norm\d?\.weight|Norm\.weight", name):
            found[name] += 1
    return found | ({"temp": torch.tensor(0.07, dtype=torch.float64)} if "temp" in found else {})


# --- the names and shapes of official states


def pretraining_shapes(told: Told) -> Shapes:
    """Of a student."""
    image, text, patches = told["image_width"], told["text_width"], (told["image_size"] // told["patch_size"]) ** 2
    decoder, pixels = told["decoder_width"], 3 * told["patch_size"] ** 2
    shapes = {
        **_under("visual_encoder.", _image_shapes(told, patches)),
        "visual_encoder.mask_token": (1, 1, decoder),
        "visual_encoder.decoder_pos_embed": (1, 1 + patches, decoder),
        **_under("visual_encoder.decoder_embed.", _linear(decoder, image)),
        **_under("visual_encoder.decoder_norm.", _norm(decoder)),
        **_under("visual_encoder.decoder_pred.", _linear(pixels, decoder)),
    }
    for number in range(told["decoder_depth"]):
        shapes |= _under(f"visual_encoder.decoder_blocks.{number}.", _block_shapes(decoder))
    shapes |= _under("text_encoder.bert.", _bert_shapes(told, told["text_depth"], told["fusion_layer"], image))
    shapes |= _under("text_encoder.cls.predictions.", _head_shapes(told))
    projections = {"vision_proj.": (told["projection"], image), "text_proj.": (told["projection"], text), "itm_head.": (2, text)}
    for name, shape in projections.items():
        shapes |= _under(name, _linear(*shape))
    return {**shapes, "temp": ()}


def answering_shapes(told: Told, patches: int) -> Shapes:
    """Of an answering model on images of so many patches. Its decoder reads states of the text's width."""
    return {
        **_under("visual_encoder.", _image_shapes(told, patches)),
        **_under("text_encoder.", _bert_shapes(told, told["text_depth"], told["fusion_layer"], told["image_width"])),
        **_under("text_decoder.bert.", _bert_shapes(told, told["answer_depth"], 0, told["text_width"])),
        **_under("text_decoder.cls.predictions.", _head_shapes(told)),
    }


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(out: int, width: int) -> Shapes:
    return {"weight": (out, width), "bias": (out,)}


def _norm(width: int) -> Shapes:
    return {"weight": (width,), "bias": (width,)}


def _image_shapes(told: Told, patches: int) -> Shapes:
    width, patch = told["image_width"], told["patch_size"]
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + patches, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for number in range(told["image_depth"]):
        shapes |= _under(f"blocks.{number}.", _block_shapes(width))
    return shapes | _under("norm.", _norm(width))


def _block_shapes(width: int) -> Shapes:
    found = {**_under("norm1.", _norm(width)), **_under("norm2.", _norm(width))}
    found |= {**_under("attn.qkv.", _linear(3 * width, width)), **_under("attn.proj.", _linear(width, width))}
    return found | _under("mlp.fc1.", _linear(4 * width, width)) | _under("mlp.fc2.", _linear(width, 4 * width))


def _bert_shapes(told: Told, depth: int, first_cross: int, seen_width: int) -> Shapes:
    width, inner = told["text_width"], told["intermediate"]
    sizes = {"word": told["vocabulary"], "position": told["positions"], "token_type": 2}
    shapes: Shapes = {f"embeddings.{name}_embeddings.weight": (size, width) for name, size in sizes.items()}
    shapes |= _under("embeddings.LayerNorm.", _norm(width))
    for number in range(depth):
        one = {**_under("intermediate.dense.", _linear(inner, width)), **_under("output.dense.", _linear(width, inner))}
        one |= _under("output.LayerNorm.", _norm(width))
        for name, seen in [("attention", width), *([("crossattention", seen_width)] if number >= first_cross else [])]:
            one |= _under(f"{name}.self.query.", _linear(width, width))
            one |= {**_under(f"{name}.self.key.", _linear(width, seen)), **_under(f"{name}.self.value.", _linear(width, seen))}
            one |= _under(f"{name}.output.dense.", _linear(width, width))
            one |= _under(f"{name}.output.LayerNorm.", _norm(width))
        shapes |= _under(f"encoder.layer.{number}.", one)
    return shapes


def _head_shapes(told: Told) -> Shapes:
    width = told["text_width"]
    dense = {**_under("transform.dense.", _linear(width, width)), **_under("transform.LayerNorm.", _norm(width))}
    return {**dense, "bias": (told["vocabulary"],)}


def _save(folder: Path, name: str, found: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in found.items()}, folder / f"{name}.safetensors")
