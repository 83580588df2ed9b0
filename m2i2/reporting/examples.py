"""Right and wrong answers with their images and, where the model can be loaded, what the answer rests on (Grad-CAM)."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2i2.data.images.decoding import decode
from m2i2.data.shards.split import ShardSplit
from m2i2.errors import M2I2Error
from m2i2.reporting.records import Evaluation

_SIDE = 224
"""Longer side of an image in the page, pixels."""


@dataclass(frozen=True)
class Example:
    """An answered question."""

    row: dict[str, Any]
    image: str = ""
    """data: address, or empty."""
    overlay: str = ""


@dataclass
class Examples:
    """The examples of an evaluation, and what is missing of them and why."""

    right: list[Example] = field(default_factory=list)
    wrong: list[Example] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def examples_of(evaluation: Evaluation, count: int, shards: Path | None, explain: bool) -> Examples:
    """The ``count`` right and wrong answers that the model was surest of, an image at most once among each.

    ``shards``: where the questions' shards are now; by default where they were at the evaluation. ``explain``: with overlays.
    """
    found = Examples()
    chosen = {right: _surest(evaluation.predictions, right, count) for right in (True, False)}
    keys = {row["image"] for rows in chosen.values() for row in rows}
    pictures: dict[str, bytes] = {}
    if keys:
        try:
            pictures = _pictures(evaluation, keys, shards)
        except M2I2Error as e:
            found.missing.append(f"Images are missing: {e}")
    overlay: Callable[[bytes, dict[str, Any]], Image.Image] | None = None
    if explain and pictures:
        try:
            overlay = _explainer(evaluation)
        except M2I2Error as e:
            found.missing.append(f"Grad-CAM overlays are missing: {e}")
    for right, rows in chosen.items():
        for row in rows:
            picture = pictures.get(row["image"])
            try:
                drawn = inlined(overlay(picture, row)) if picture and overlay else ""
            except M2I2Error as e:  # such as a question without words
                drawn = ""
                found.missing.append(f"The Grad-CAM overlay of question {row.get('id')} is missing: {e}")
            (found.right if right else found.wrong).append(
                Example(
                    row,
                    inlined(decode(picture, row["image"])) if picture else "",
                    drawn,
                )
            )
    return found


def inlined(image: Image.Image, side: int = _SIDE) -> str:
    """An image as a data: address, scaled down to ``side``."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _surest(rows: list[dict[str, Any]], right: bool, count: int) -> list[dict[str, Any]]:
    """Rows with the highest probability of the given answer, an image at most once."""
    chosen: dict[str, dict[str, Any]] = {}
    for row in sorted((r for r in rows if bool(r.get("correct")) == right), key=lambda r: -_probability(r)):
        chosen.setdefault(str(row.get("image")), row)
        if len(chosen) == count:
            break
    return list(chosen.values())


def _probability(row: dict[str, Any]) -> float:
    best = row.get("best") or [["", 0.0]]
    return float(best[0][1])


def _pictures(evaluation: Evaluation, keys: set[str], shards: Path | None) -> dict[str, bytes]:
    """The stored images of some samples."""
    stored = evaluation.results.get("shards", {})
    folder = shards or Path(str(stored.get("folder", "")))
    split = ShardSplit.open(folder, str(evaluation.results.get("split", "test")), "vqa")
    if stored.get("fingerprint") not in (None, split.fingerprint):
        raise M2I2Error(f"{folder} holds other shards than those that were evaluated; name the right ones with --shards.")
    found: dict[str, bytes] = {}
    for asked in split.questions():
        if asked.key in keys and asked.key not in found:
            found[asked.key] = split.read(asked.item).image
    return found


def _explainer(evaluation: Evaluation) -> Callable[[bytes, dict[str, Any]], Image.Image]:
    """A function from an image and its answered question to the image with the map of the answer over it."""
    from m2i2.workflows.answering import load_model

    answerer = load_model(Path(str(evaluation.results.get("checkpoint", "")))).answerer()

    def overlay(encoded: bytes, row: dict[str, Any]) -> Image.Image:
        image = decode(encoded, row["image"])
        cam = answerer.explain(image, row["question"], row["prediction"])
        return blended(image, cam.map.cpu().numpy())

    return overlay


def blended(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """``image`` with a map [side, side] that sums to 1 over it: full red at four times the even share and above."""
    heat = Image.fromarray((255 * (weights * weights.size / 4).clip(0, 1)).astype(np.uint8))
    strength = 0.65 * np.asarray(heat.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    mixed = np.asarray(image, dtype=np.float32) * (1 - strength) + np.array([255, 60, 20], dtype=np.float32) * strength
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
