"""Augmentation, on 8-bit pixels and from a sample's own random stream; normalisation, later, on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m2i2.data.images.decoding import decode, decode_pixels
from m2i2.data.images.operations import OPERATIONS, apply_operation
from m2i2.data.images.resizing import resize

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, per channel of [0, 1] pixels (official code)."""


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
        pixels = decode_pixels(encoded, name, math.ceil(self.size / math.sqrt(self.crop_scale[0])))
        image = resize(pixels, self.size, crop_box(pixels.shape[1], pixels.shape[0], self.crop_scale, rng))
        if self.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, :, ::-1])
        count, magnitude = self.randaugment
        for operation in rng.integers(len(OPERATIONS), size=count) if count else ():
            if rng.random() <= 0.5:  # official: each operation is applied with probability 0.5
                image = apply_operation(image, OPERATIONS[operation], magnitude, rng)
        # every operation works on channels alone, so that a grey image is augmented once, not three times
        return torch.from_numpy(np.ascontiguousarray(image)).expand(3, -1, -1).contiguous()


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


def crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop of a random share of the area and a random aspect between 3/4 and 4/3.

    As torchvision's RandomResizedCrop: ten tries, then the largest central crop of an allowed aspect.
    """
    ratio = (3 / 4, 4 / 3)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())  # as rng.uniform, in a quarter of its time
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] uint8."""
    if image.mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1).contiguous()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalise(image: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> float32, minus CLIP's mean, over its deviation."""
    found = image.float() / 255
    for channel, (mean, deviation) in enumerate(zip(MEAN, DEVIATION, strict=True)):  # numbers, not tensors that the host would send
        found[..., channel, :, :].sub_(mean).div_(deviation)
    return found


def denormalise(image: Tensor) -> Tensor:
    """The way back to [B, 3, H, W] uint8."""
    mean, deviation = _constants(image.device)
    return ((image * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(MEAN, device=device).view(3, 1, 1),
        torch.tensor(DEVIATION, device=device).view(3, 1, 1),
    )
