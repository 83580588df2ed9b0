"""The course of a training: its curves beside what guessing would give, reconstructions of masked images, and retrieval."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from m2i2.data.images.decoding import decode
from m2i2.reporting.charts import Chance, chart, line_of
from m2i2.reporting.records import Run
from m2i2.training.display import losses_of

_LOSSES = {
    "loss": ("Loss", "The weighted sum of the losses below, which the training lowers."),
    "mim": (
        "Masked image modelling (MIM)",
        "Predict the pixels of masked patches: mean squared error of normalised pixels; 0 is perfect.",
    ),
    "mlm": ("Masked language modelling (MLM)", "Predict masked words from text and image: nats per word; 0 is certain and right."),
    "itm": ("Image-text matching (ITM)", "Tell a pair from two hard pairs that do not belong together: nats per pair."),
    "itc": ("Image-text contrast (ITC)", "Find the caption of an image, and the image of a caption, among all candidates: nats."),
}
"""Titles of the losses and what they measure; an objective of a plugin has its name alone."""
_ANSWERS = (
    "Loss of the answers",
    "How unlikely the true answers are to the model: nats per answer, weighted; 0 is certain and right.",
)
_ONE_OF_THREE = math.log(3) - 2 / 3 * math.log(2)
"""Cross-entropy of matching if every pair gets the probability 1/3: a third of the pairs belong together."""
_HEAD = 14
"""Pixels of the column titles in a stored sheet of reconstructions (`m2i2.training.validation`)."""


def curves_of(run: Run) -> dict[str, list[Markup]]:
    """The charts of losses and retrieval (``learning``), and those of learning rate, speed and memory (``machine``)."""
    log, held_out = run.log, run.validations
    chances = _chances(run)
    learning = []
    for name in losses_of(max(log, key=len)) if log else []:
        title, about = _ANSWERS if run.stage == "finetuning" and name == "loss" else _LOSSES.get(name, (name, ""))
        lines = [line_of(log, name, "training"), line_of(held_out, name, "held out", marked=True)]
        learning.append(chart(title, lines, about, chances.get(name)))
    pairs = held_out[-1].get("pairs") if held_out else None
    for way, label in (("image_to_text", "captions found for images"), ("text_to_image", "images found for captions")):
        chance = Chance(f"guessing @10 of {pairs:.0f}", 1000 / pairs) if isinstance(pairs, int | float) and pairs > 10 else None
        lines = [line_of(held_out, f"{way}_r{k}", f"@{k}", marked=True) for k in (1, 5, 10)]
        about = "Share of held-out pairs whose partner is among the nearest 1, 5 and 10 by contrastive features."
        learning.append(chart(f"Recall, {label}, %", lines, about, chance))
    ages = [line_of(held_out, f"queue_age_{kind}", f"{kind} features", scale=100, marked=True) for kind in ("image", "text")]
    about = "How well a linear regression predicts the age of features in the queue. Near 100, it gives the queue's pairs away."
    learning.append(chart("Age of the queue's features, % explained", ages, about))
    machine = [
        chart("Learning rate", [line_of(log, "lr", "learning rate")]),
        chart("Temperature of the contrast", [line_of(log, "temperature", "temperature")]),
        chart("Samples per second", [line_of(log, "samples_per_s", "samples per second")]),
        chart("Waiting for data, %", [line_of(log, "data_wait", "of the time", scale=100)]),
        chart("Peak memory, GiB", [line_of(log, "memory_gib", "rank 0")]),
        chart("Model FLOPs utilisation (MFU), %", [line_of(log, "mfu", "of the peak", scale=100)]),
    ]
    return {"learning": [svg for svg in learning if svg], "machine": [svg for svg in machine if svg]}


def notes_of(run: Run) -> list[str]:
    """What to know before reading the curves."""
    settings = run.settings.get("objectives", {})
    notes = ["Dashed: what guessing gives."] if settings else []
    if run.validations and settings.get("distillation"):
        notes.append("Held-out losses are measured without distillation, so they may lie below those of the training.")
    return notes


def _chances(run: Run) -> dict[str, Chance]:
    """What guessing gives, where it follows from the settings."""
    settings = run.settings
    found: dict[str, Chance] = {}
    objectives = settings.get("objectives", {})
    if not objectives:
        return found
    found["itm"] = Chance("guessing 1 of 3", _ONE_OF_THREE)
    if words := settings.get("text", {}).get("vocabulary_size"):
        found["mlm"] = Chance(f"guessing 1 of {words:,}", math.log(words))
    whole = objectives.get("scope", "") == "batch" or settings.get("training", {}).get("accumulation", 1) == 1
    if whole and objectives.get("negatives") == "global":
        candidates = settings.get("training", {}).get("batch", 0) + objectives.get("queue", 0)
        if candidates > 1:
            found["itc"] = Chance(f"guessing 1 of {candidates:,}", math.log(candidates))
    return found


def reconstructions_of(run: Run) -> list[dict[str, str]]:
    """The first and the last sheet of masked images, without their titles; the page writes larger ones."""
    paths = run.reconstructions
    made = []
    for path in [paths[0], paths[-1]] if len(paths) > 1 else paths:
        sheet = decode(run.picture(path), str(path))
        out = io.BytesIO()
        sheet.crop((0, _HEAD, sheet.width, sheet.height)).save(out, "PNG")
        step = f"{int(path.stem.removeprefix('reconstructions-')):,}"
        made.append({"step": step, "image": _inlined(out.getvalue())})
    return made


def retrieval_of(run: Run) -> dict[str, Any]:
    """The last validation's examples, their images inlined."""
    found: Mapping[str, Any] = run.retrieval
    examples = []
    for example in found.get("image_to_text", []):
        data = run.picture(run.folder / "validation" / Path(str(example["image"])).name)
        examples.append({**example, "image": _inlined(data) if data else ""})
    return {"step": found.get("step"), "pairs": found.get("pairs"), "examples": examples}


def _inlined(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
