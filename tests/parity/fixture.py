"""The tiny double-precision model that the official numbers were taken from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig

VISION = VisionConfig(image_size=64, patch_size=16, width=64, depth=3, heads=4, decoder_width=32, decoder_depth=2, decoder_heads=4)
TEXT = TextConfig(
    vocabulary_size=500,
    width=64,
    depth=4,
    fusion_layer=2,
    heads=4,
    intermediate=128,
    positions=64,
    dropout=0.0,
    attention_dropout=0.0,
    decoder_depth=2,
)
OBJECTIVES = ObjectivesConfig(projection=16, queue=24, negatives="global", false_negatives="official")


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """A fixture file."""
    return load_file(folder / f"{name}.safetensors")


def fitting(module: torch.nn.Module, state: Mapping[str, Tensor], suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The module's parameters out of an official state, with ``_m`` behind the first name for the teacher's."""
    for name, own in module.state_dict().items():
        head, dot, tail = name.partition(".")
        yield name, state[head + suffix + dot + tail].reshape(own.shape)


def largest_difference(ours: Tensor, official: Tensor) -> float:
    """The largest absolute difference, of scalars written as [1] too."""
    return float((ours.detach().reshape(official.shape) - official).abs().max())
