"""Bicubic antialiased resizing of a box of pixels, as Pillow does it, with the vector kernel that torch has for rows of bytes.

Both directions are resized as rows, the image turned on its side in between: four bytes that lie beside each other pass for
the channels of a pixel, which is the kernel's fast form. It knows no box, but pixels that lie beyond one count at its edges:
those after its end are handed over with it, and the few rows at its start are computed here.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def resize(pixels: Pixels, size: int, box: tuple[int, int, int, int]) -> Pixels:
    """The box (left, top, right, bottom) of [H, W, C] pixels as [C, size, size]; within 1 of Pillow's."""
    left, top, right, bottom = box
    first_row, last_row = _reach(top, bottom, pixels.shape[0], size)
    first_column, last_column = _reach(left, right, pixels.shape[1], size)
    part = pixels[first_row:last_row, first_column:last_column]
    height, channels = part.shape[0], part.shape[2]
    columns = _stretch(_on_its_side(part.transpose(0, 2, 1)), left - first_column, right - left, size)
    rows = _stretch(_on_its_side(columns[:, :, :height]), top - first_row, bottom - top, size)
    out = np.empty((channels, size, size), dtype=np.uint8)
    out[:] = rows[:, :, :size].transpose(1, 0, 2)
    return out


def _support(scale: float) -> float:
    """How far from its centre an output pixel sees, in input pixels."""
    return 2 * max(scale, 1.0)


def _reach(start: int, end: int, limit: int, size: int) -> tuple[int, int]:
    """The range of pixels that a box of them needs."""
    margin = math.ceil(_support((end - start) / size)) + 1
    return max(0, start - margin), min(limit, end + margin)


def _on_its_side(rows: Pixels) -> Pixels:
    """[A, C, B] -> [B, C, A], the last dimension filled up to a multiple of 4 with anything."""
    length, channels, width = rows.shape
    turned = np.empty((width, channels, (length + 3) // 4 * 4), dtype=np.uint8)
    for channel in range(channels):
        turned[:, channel, :length] = rows[:, channel].T
    return turned


def _stretch(rows: Pixels, start: int, length: int, size: int) -> Pixels:
    """``length`` of the rows from ``start`` on -> ``size`` rows."""
    if length == size:
        return rows[start : start + size]
    flat = rows.reshape(len(rows), -1)
    width = flat.shape[1] // 4
    source = torch.from_numpy(flat[start:]).view(1, -1, width, 4).permute(0, 3, 1, 2)
    wanted = size + (size == len(rows) - start)  # as many rows as there are would be returned as they are
    resized = torch.ops.aten._upsample_bicubic2d_aa(source, [wanted, width], False, size / length, None)
    out: Pixels = resized.permute(0, 2, 3, 1).reshape(wanted, -1)[:size].numpy()
    if start:
        weights = _weights(length, size, start, len(rows))
        first = weights @ flat[: weights.shape[1]].astype(np.float32)
        first += 0.5
        out[: len(first)] = first.clip(0, 255, out=first)
    return out.reshape(size, *rows.shape[1:])


@lru_cache(maxsize=4096)
def _weights(length: int, size: int, start: int, limit: int) -> NDArray[np.float32]:
    """[outputs, rows]: what the first rows of the output are made of (Keys' cubic, a = -0.5)."""
    scale = length / size
    centres = start + (np.arange(min(size, math.ceil(_support(scale) / scale))) + 0.5) * scale
    rows = min(limit, math.ceil(centres[-1] + _support(scale)))
    x = np.abs((np.arange(rows) + 0.5 - centres[:, None]) / max(scale, 1.0))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
