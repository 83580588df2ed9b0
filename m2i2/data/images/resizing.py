"""Bicubic antialiased resizing of a box of pixels, as Pillow does it, by the vector kernel that torch has for bytes.

The kernel is fast for 3 and for 4 channels. Colours are resized as they are, and rows of bytes as pixels of four. Grey images are
resized as rows, turned on their side in between.

The kernel knows no box, but pixels beyond a box count at its edges. Those after its end are handed over with it. The first few
columns and rows of the output also need pixels before its start; they are computed here.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def resize(pixels: Pixels, size: int, box: tuple[int, int, int, int]) -> Pixels:
    """The box (left, top, right, bottom) of [H, W, C] pixels, C is 1 or 3, as [C, size, size]; within 2 of Pillow's."""
    left, top, right, bottom = box
    first_row, last_row = _reach(top, bottom, pixels.shape[0], size)
    first_column, last_column = _reach(left, right, pixels.shape[1], size)
    part = pixels[first_row:last_row, first_column:last_column]
    columns, rows = (left - first_column, right - left), (top - first_row, bottom - top)
    if part.shape[2] == 1:
        across = _down(_turned(part[:, :, 0]), size, *columns)
        return _down(_turned(across[:, : len(part)]), size, *rows)[None, :, :size]
    image = _down(_filled(_across(part, size, *columns).reshape(len(part), -1)), size, *rows)
    return np.ascontiguousarray(image[:, : 3 * size].reshape(size, size, 3).transpose(2, 0, 1))


def _support(scale: float) -> float:
    """How far from its centre an output pixel sees, in input pixels."""
    return 2 * max(scale, 1.0)


def _reach(start: int, end: int, limit: int, size: int) -> tuple[int, int]:
    """The range of pixels that a box of them needs."""
    margin = math.ceil(_support((end - start) / size)) + 1
    return max(0, start - margin), min(limit, end + margin)


def _turned(plane: Pixels) -> Pixels:
    """[A, B] -> [B, A], the last dimension filled up to a multiple of 4 with anything."""
    turned = np.empty((plane.shape[1], -(-len(plane) // 4) * 4), dtype=np.uint8)
    turned[:, : len(plane)] = plane.T
    return turned


def _filled(rows: Pixels) -> Pixels:
    """The rows, each filled up to a multiple of 4 bytes."""
    missing = -rows.shape[1] % 4
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _across(part: Pixels, size: int, start: int, length: int) -> Pixels:
    """[H, W, 3] -> [H, size, 3]: of every row the ``length`` pixels from ``start`` on."""
    height, width = part.shape[0], part.shape[1] - start
    wanted = size + (size == width != length)  # as many columns as there are would be returned as they are
    inside = np.ascontiguousarray(part[:, start:])  # the kernel takes twice the time for rows with gaps between them
    source = torch.from_numpy(inside)[None].permute(0, 3, 1, 2)
    resized = torch.ops.aten._upsample_bicubic2d_aa(source, [height, wanted], False, None, size / length)
    out: Pixels = resized[0].permute(1, 2, 0)[:, :size].numpy()
    if start:
        weights = _weights_of_colours(length, size, start, part.shape[1])
        first = part[:, : len(weights) // 3].reshape(height, -1)
        out[:, : weights.shape[1] // 3] = _bytes(first.astype(np.float32) @ weights).reshape(height, -1, 3)
    return out


def _down(rows: Pixels, size: int, start: int, length: int) -> Pixels:
    """[H, bytes] -> [size, bytes]: the ``length`` rows from ``start`` on; each has a multiple of 4 bytes.

    Four of them that lie beside each other pass for the channels of a pixel, which the kernel is fast for.
    """
    if length == size:
        return rows[start : start + size]
    height, width = len(rows) - start, rows.shape[1] // 4
    wanted = size + (size == height)  # as many rows as there are would be returned as they are
    source = torch.from_numpy(rows[start:]).view(1, height, width, 4).permute(0, 3, 1, 2)
    resized = torch.ops.aten._upsample_bicubic2d_aa(source, [wanted, width], False, size / length, None)
    out: Pixels = resized.permute(0, 2, 3, 1).reshape(wanted, -1)[:size].numpy()
    if start:
        weights = _weights(length, size, start, len(rows))
        out[: len(weights)] = _bytes(weights @ rows[: weights.shape[1]].astype(np.float32))
    return out


def _bytes(levels: NDArray[np.float32]) -> Pixels:
    """Levels, rounded and cut to 0 to 255; ``levels`` is overwritten."""
    levels += 0.5
    return levels.clip(0, 255, out=levels).astype(np.uint8)


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


@lru_cache(maxsize=4096)
def _weights_of_colours(length: int, size: int, start: int, limit: int) -> NDArray[np.float32]:
    """[3 rows, 3 outputs]: the same for rows of three values that lie beside each other."""
    return np.kron(_weights(length, size, start, limit).T, np.eye(3, dtype=np.float32))
