"""A folder of official numbers: its sizes, as its model.json and its tensors tell them, and its files."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class Sizes:
    """The double-precision model that a folder's numbers were taken from."""

    vision: VisionConfig
    text: TextConfig
    objectives: ObjectivesConfig
    answering_side: int
    """Pixels of the VQA part's images; 0 where the folder has no VQA part."""
    answer_weight: float


@cache
def sizes(folder: Path) -> Sizes:
    """What ``model.json`` says and, where it is silent on a size, what the shapes of the weights and inputs say."""
    told, state = json.loads((folder / "model.json").read_text()), tensors(folder, "pretrain_state_dict")
    told.setdefault("image_size", tensors(folder, "pretrain_inputs")["image"].shape[-1])
    side = 0
    if has_answering(folder):
        side, answering = tensors(folder, "vqa_inputs")["image"].shape[-1], tensors(folder, "vqa_state_dict")
        told.setdefault("answer_depth", 1 + max(_numbers(answering, r"text_decoder\.bert\.encoder\.layer\.(\d+)\.")))
    return _read_sizes(told, state, side)


def _read_sizes(told: Mapping[str, Any], state: Mapping[str, Tensor], answering_side: int) -> Sizes:
    """Sizes by ``told``, else by an official state's shapes; heads only by ``told``."""
    layer = "text_encoder.bert.encoder.layer"
    embeddings = "text_encoder.bert.embeddings"
    if silent := [key for key in ("image_heads", "decoder_heads", "text_heads") if key not in told]:
        raise ValueError(f"model.json has no {', '.join(silent)}, which the weights do not tell")

    def size(key: str, measure: Callable[[], int]) -> int:
        return int(told[key]) if key in told else measure()

    depth = size("text_depth", lambda: 1 + max(_numbers(state, rf"{layer}\.(\d+)\.")))
    fusion = size("fusion_layer", lambda: min(_numbers(state, rf"{layer}\.(\d+)\.crossattention\.")))
    vision = VisionConfig(
        image_size=told["image_size"],
        patch_size=size("patch_size", lambda: state["visual_encoder.patch_embed.proj.weight"].shape[-1]),
        width=size("image_width", lambda: state["visual_encoder.cls_token"].shape[-1]),
        depth=size("image_depth", lambda: 1 + max(_numbers(state, r"visual_encoder\.blocks\.(\d+)\."))),
        heads=told["image_heads"],
        decoder_width=size("decoder_width", lambda: state["visual_encoder.mask_token"].shape[-1]),
        decoder_depth=size("decoder_depth", lambda: 1 + max(_numbers(state, r"visual_encoder\.decoder_blocks\.(\d+)\."))),
        decoder_heads=told["decoder_heads"],
    )
    text = TextConfig(
        vocabulary_size=size("vocabulary", lambda: state[f"{embeddings}.word_embeddings.weight"].shape[0]),
        width=size("text_width", lambda: state[f"{embeddings}.word_embeddings.weight"].shape[1]),
        depth=depth,
        fusion_layer=fusion,
        heads=told["text_heads"],
        intermediate=size("intermediate", lambda: state[f"{layer}.0.intermediate.dense.bias"].shape[0]),
        positions=size("positions", lambda: state[f"{embeddings}.position_embeddings.weight"].shape[0]),
        dropout=0.0,
        attention_dropout=0.0,
        decoder_depth=told.get("answer_depth", depth - fusion),
    )
    objectives = ObjectivesConfig(
        projection=size("projection", lambda: state["vision_proj.bias"].shape[0]),
        queue=size("queue", lambda: state["image_queue"].shape[1]),
        momentum=told.get("momentum", 0.995),
        distillation=told.get("alpha", 0.4),
        image_mask_ratio=told.get("mask_ratio", 0.15),
        negatives="global",
        false_negatives="official",
    )
    return Sizes(vision, text, objectives, answering_side, told.get("answer_weight", 0.5))


def _numbers(state: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for key in state if (match := re.match(pattern, key))}


def has_answering(folder: Path) -> bool:
    """Whether the folder has a VQA part."""
    return all((folder / f"vqa_{name}.safetensors").is_file() for name in ("inputs", "outputs", "state_dict"))


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """A fixture file."""
    return load_file(folder / f"{name}.safetensors")


def fitting(module: torch.nn.Module, state: Mapping[str, Tensor], suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The module's parameters out of an official state, with ``_m`` behind the first name for the teacher's."""
    for name, own in module.state_dict().items():
        head, dot, tail = name.partition(".")
        found = state[head + suffix + dot + tail]
        yield name, found.reshape(own.shape) if found.numel() == 1 else found  # the temperature is written as [] or [1]


def largest_difference(ours: Tensor, official: Tensor) -> float:
    """The largest absolute difference, of scalars written as [1] too; infinite where a number is none."""
    difference = (ours.detach().reshape(official.shape) - official).abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")
