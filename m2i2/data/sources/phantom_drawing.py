"""How a phantom is generated: soft ellipses and lines on a square, then the look of a modality."""

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from m2i2.data.sources.phantoms import Findings

SIDE = 128
"""Pixels a side."""

Array = NDArray[np.float32]
_Y, _X = (np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5) / (SIDE / 2) - 1


_FAR = np.hypot(_X, _Y)
"""Of each pixel from the middle."""
_ANGLE, _DEPTH = np.arctan2(_X, _Y + 1.35), np.hypot(_X, _Y + 1.35)
"""Of each pixel from an ultrasound probe above the image."""
_CHECKS = np.sign(np.sin(40 * _X) * np.sin(40 * _Y)).astype(np.float32)


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
    """Rows and columns of the pixels between two points, and a pixel more on every side."""

    def pixels(start: float, end: float) -> slice:
        return slice(max(0, math.floor((start + 1) * SIDE / 2) - 1), max(0, math.ceil((end + 1) * SIDE / 2) + 1))

    return pixels(y0, y1), pixels(x0, x1)


def ellipse(cx: float, cy: float, rx: float, ry: float, soft: float = 0.05, angle: float = 0.0) -> Array:
    """1 inside, 0 outside, with an edge ``soft`` wide; coordinates from -1 to 1, y downwards."""
    field, outer = np.zeros((SIDE, SIDE), np.float32), 1 + 0.5 * soft / min(rx, ry)
    reach_x, reach_y = (outer * max(rx, ry),) * 2 if angle else (outer * rx, outer * ry)
    box = _box(cx - reach_x, cy - reach_y, cx + reach_x, cy + reach_y)
    x, y = _X[box] - cx, _Y[box] - cy
    if angle:
        x, y = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    distance = (np.sqrt((x / rx) ** 2 + (y / ry) ** 2) - 1) * min(rx, ry)
    field[box] = np.clip(0.5 - distance / soft, 0, 1)
    return field


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Array:
    """A soft stroke between two points."""
    field = np.zeros((SIDE, SIDE), np.float32)
    box = _box(min(x0, x1) - width, min(y0, y1) - width, max(x0, x1) + width, max(y0, y1) + width)
    x, y, dx, dy = _X[box], _Y[box], x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
    field[box] = np.clip(1.5 - distance / width * 1.5, 0, 1)
    return field


def ring(cx: float, cy: float, rx: float, ry: float, width: float) -> Array:
    """The rim of an ellipse."""
    return ellipse(cx, cy, rx, ry) - ellipse(cx, cy, rx - width, ry - width)


@cache
def _fixed_chest() -> tuple[Array, Array, Array]:
    """Body, lungs and bones; the heart alone differs from chest to chest."""
    body = ellipse(0, 0.1, 0.92, 0.98)
    lungs = np.maximum(ellipse(-0.42, 0.02, 0.3, 0.62), ellipse(0.42, 0.02, 0.3, 0.62))
    bones = line(0, -0.95, 0, 0.95, 0.08)
    for i in range(5):
        y = -0.55 + 0.26 * i
        bones = np.maximum(bones, 0.7 * np.maximum(ring(-0.42, y + 0.15, 0.42, 0.2, 0.05), ring(0.42, y + 0.15, 0.42, 0.2, 0.05)))
    return body, lungs, bones * body


def _chest(jitter: Array) -> tuple[Array, Array, Array]:
    body, lungs, bones = _fixed_chest()
    heart = ellipse(0.12 + 0.05 * jitter[0], 0.35, 0.3, 0.3)
    return body, np.clip(0.55 - 0.45 * lungs + 0.3 * heart, 0, 1) * body, bones


@cache
def _fixed_abdomen() -> tuple[Array, Array]:
    """The organs' levels, and the spine; the body's height alone differs."""
    liver = ellipse(-0.4, -0.18, 0.42, 0.36, angle=0.4)
    kidneys = np.maximum(ellipse(-0.48, 0.32, 0.15, 0.2), ellipse(0.48, 0.32, 0.15, 0.2))
    spleen = ellipse(0.6, -0.2, 0.18, 0.27, angle=-0.3)
    return np.clip(0.38 + 0.2 * liver + 0.25 * kidneys + 0.18 * spleen, 0, 1), ellipse(0, 0.48, 0.16, 0.16)


def _abdomen(jitter: Array) -> tuple[Array, Array, Array]:
    body = ellipse(0, 0, 0.95, 0.78 + 0.04 * jitter[0])
    organs, spine = _fixed_abdomen()
    return body, organs * body, spine


@cache
def _fixed_head() -> Array:
    """The levels of the brain; the skull's width alone differs."""
    ventricles = np.maximum(ellipse(-0.14, 0, 0.08, 0.3, angle=0.2), ellipse(0.14, 0, 0.08, 0.3, angle=-0.2))
    folds = 0.08 * np.sin(18 * _X + 3 * np.sin(9 * _Y)) * ellipse(0, 0, 0.6, 0.8)
    fissure = line(0, -0.85, 0, 0.85, 0.02)
    return np.clip(0.5 + folds - 0.35 * ventricles - 0.2 * fissure, 0, 1)


def _head(jitter: Array) -> tuple[Array, Array, Array]:
    body = ellipse(0, 0, 0.72 + 0.04 * jitter[0], 0.93)
    skull = ring(0, 0, 0.72 + 0.04 * jitter[0], 0.93, 0.1)
    return body, _fixed_head() * body, skull


def _hand(jitter: Array) -> tuple[Array, Array, Array]:
    palm = ellipse(0, 0.45, 0.45, 0.42)
    flesh, bones = palm.copy(), np.zeros_like(palm)
    for i, x in enumerate((-0.62, -0.3, 0.0, 0.3, 0.62)):
        tip = (-0.2, -0.72, -0.85, -0.74, -0.5)[i] + 0.05 * jitter[i]
        flesh = np.maximum(flesh, line(x * 0.55, 0.4, x, tip, 0.17))
        for k in range(3):
            a, b = 0.05 + 0.32 * k, 0.3 + 0.32 * k
            sx, sy = x * 0.55, 0.4
            bones = np.maximum(bones, line(sx + (x - sx) * a, sy + (tip - sy) * a, sx + (x - sx) * b, sy + (tip - sy) * b, 0.07))
    return flesh, 0.4 * flesh, bones


_REGIONS = {"chest": _chest, "abdomen": _abdomen, "head": _head, "hand": _hand}


def _lesions(findings: "Findings", rng: np.random.Generator) -> Array:
    """Where the lesions lie: up to three beside one another in their quarter of the image."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    if findings.lesion is None:
        return mask
    radius = 0.11 if findings.size == "small" else 0.2
    x = (-1 if findings.side == "left" else 1) * 0.42 + rng.uniform(-0.05, 0.05)
    y = (-1 if findings.level == "upper" else 1) * 0.42 + rng.uniform(-0.05, 0.05)
    step = 2.2 * radius
    for i in range(findings.count):
        dx = (i - (findings.count - 1) / 2) * step if findings.count > 1 else 0.0
        dy = 0.6 * radius * (-1) ** i if findings.count > 1 else 0.0
        rx, ry = (radius * 1.1, radius * 0.8) if findings.lesion == "mass" else (radius, radius)
        mask = np.maximum(mask, ellipse(x + dx * 0.75, y + dy, rx, ry, angle=rng.uniform(0, 3)))
    return mask


def _device(findings: "Findings", rng: np.random.Generator) -> Array:
    shift = rng.uniform(-0.04, 0.04)
    if findings.device == "pacemaker":
        box = ((np.abs(_X + 0.66 + shift) < 0.16) & (np.abs(_Y + 0.7) < 0.12)).astype(np.float32)
        return np.maximum(box, line(-0.55, -0.62, -0.05, 0.05, 0.03))
    if findings.device == "tube":
        return np.maximum(line(shift, -1, 0.08 + shift, 0.3, 0.045), line(0.08 + shift, 0.3, 0.3, 0.75, 0.045))
    if findings.device == "clip":
        clips = [line(0.05 + d, 0.8 - d, 0.2 + d, 0.95 - d, 0.035) for d in (-0.3, 0.0, 0.3)]
        clips += [line(0.2 + d, 0.8 - d, 0.05 + d, 0.95 - d, 0.035) for d in (-0.3, 0.0, 0.3)]
        return np.maximum.reduce(clips)
    return np.zeros((SIDE, SIDE), np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int) -> Array:
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    scale = SIDE // cells
    return np.kron(coarse, np.ones((scale, scale), np.float32))


def draw(findings: "Findings", rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image [SIDE, SIDE] and its lesion mask."""
    body, tissue, bones = _REGIONS[findings.region](rng.uniform(-1, 1, 5).astype(np.float32))
    lesions, device = _lesions(findings, rng), _device(findings, rng)
    grain = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    match findings.modality:
        case "x-ray":
            image = 0.16 + 0.12 * (1 - _FAR / 1.4) + 0.5 * tissue + 0.4 * bones + 0.02 * grain
        case "ct":
            table = line(-0.8, 0.97, 0.8, 0.97, 0.05)
            image = 0.03 + 0.45 * body + 0.3 * (tissue - 0.4 * body) + 0.75 * bones + 0.3 * table + 0.025 * grain
        case "mri":
            image = 0.02 + (0.9 - 0.9 * tissue) * body - 0.5 * bones * body + 0.015 * grain + 0.02 * _smooth_noise(rng, 16) * body
        case _:
            fan = (np.abs(_ANGLE) < 0.66) & (_DEPTH > 0.4) & (_DEPTH < 2.25)
            speckle = np.exp(0.32 * grain + 0.15 * _smooth_noise(rng, 32))
            image = fan * (0.16 + 0.42 * tissue + 0.35 * bones) * speckle
    kind = findings.lesion
    if kind == "nodule":
        image = image * (1 - lesions) + lesions * (0.95 + 0.01 * grain)
    elif kind == "cyst":
        rim = np.clip(4 * lesions * (1 - lesions), 0, 1)
        image = image * (1 - lesions) + 0.02 * lesions + 0.8 * rim
    elif kind == "mass":
        texture = 0.55 + 0.4 * _CHECKS
        image = image * (1 - lesions) + lesions * texture
    image = np.maximum(image, device * 1.0)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), lesions > 0.5
