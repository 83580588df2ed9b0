"""Augmentation, on 8-bit pixels and from a sample's own random stream; normalisation, later, on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from m2i2.data.images.decoding import decode

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, per channel of [0, 1] pixels (official code)."""

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
_GREY = 128


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The official augmentation: random resized crop (bicubic), a flip where asked for, RandAugment."""

    size: int
    crop_scale: tuple[float, float]
    flip: bool
    randaugment: tuple[int, int]
    """Operations per image, magnitude."""

    def __call__(self, encoded: bytes, rng: np.random.Generator, name: str) -> Tensor:
        """An encoded image -> [3, size, size] uint8; M2I2Error names ``name`` where it cannot be decoded."""
        # a crop of the smallest share still has `size` pixels a side after scaled decoding, where the file has them
        image = decode(encoded, name, math.ceil(self.size / math.sqrt(self.crop_scale[0])), keep_grey=True)
        box = crop_box(image.width, image.height, self.crop_scale, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        count, magnitude = self.randaugment
        for operation in rng.integers(len(OPERATIONS), size=count):
            if rng.random() <= 0.5:  # official: each operation is applied with probability 0.5
                image = apply_operation(image, OPERATIONS[operation], magnitude, rng)
        return _to_tensor(image)


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """The official test transform: the whole image, resized to a square (bicubic)."""

    size: int

    def __call__(self, encoded: bytes, name: str) -> Tensor:
        """An encoded image -> [3, size, size] uint8."""
        return self.of_image(decode(encoded, name, 2 * self.size, keep_grey=True))

    def of_image(self, image: Image.Image) -> Tensor:
        """An RGB or grey image -> [3, size, size] uint8."""
        return _to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


def crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of a random share of the area and a random aspect between 3/4 and 4/3.

    As torchvision's RandomResizedCrop: ten tries, then the largest central crop of an allowed aspect.
    """
    ratio = (3 / 4, 4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def apply_operation(image: Image.Image, name: str, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """One operation of RandAugment at ``magnitude`` of 10 (official ranges); what lies outside becomes grey."""
    level = magnitude / 10
    sign = -1.0 if name.startswith(("Shear", "Translate", "Rotate")) and rng.random() > 0.5 else 1.0
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(level * 1.8 + 0.1)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(level * 1.8 + 0.1)
        case "ShearX":
            return _affine(image, (1, sign * level * 0.3, 0, 0, 1, 0))
        case "ShearY":
            return _affine(image, (1, 0, 0, sign * level * 0.3, 1, 0))
        case "TranslateX":
            return _affine(image, (1, 0, sign * level * 10, 0, 1, 0))
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, sign * level * 10))
        case "Rotate":
            return image.rotate(sign * level * 30, Image.Resampling.BILINEAR, fillcolor=_fill(image))
    return image


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=_fill(image))


def _fill(image: Image.Image) -> int | tuple[int, int, int]:
    return _GREY if image.mode == "L" else (_GREY, _GREY, _GREY)


def _to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] uint8; every operation works on channels alone, so that a grey image is augmented once, not three times."""
    if image.mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1).contiguous()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalise(image: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> float32, minus CLIP's mean, over its deviation."""
    mean, deviation = _constants(image.device)
    return (image.float() / 255 - mean) / deviation


def denormalise(image: Tensor) -> Tensor:
    """The way back to [B, 3, H, W] uint8."""
    mean, deviation = _constants(image.device)
    return ((image * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(MEAN, device=device).view(3, 1, 1),
        torch.tensor(DEVIATION, device=device).view(3, 1, 1),
    )
