"""Right and wrong answers with their images and, where the model can be loaded, what the answer rests on (Grad-CAM)."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from m2i2.data.images.decoding import decode
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.cleaning import same_spelling
from m2i2.errors import M2I2Error
from m2i2.evaluation.scoring import FEW
from m2i2.inference.overlay import overlay
from m2i2.reporting.records import Evaluation, Rows, question_type

_SIDE = 224
"""Longer side of an image in the page, pixels."""
_SHOWN = 3
"""Likeliest answers that an example shows."""


@dataclass(frozen=True)
class Example:
    """An answered question."""

    row: dict[str, Any]
    image: str = ""
    """data: address, or empty."""
    overlay: str = ""

    @property
    def type(self) -> str:
        """The question's."""
        return question_type(self.row)

    @property
    def best(self) -> list[tuple[str, float, str]]:
        """The likeliest answers, their probability in percent, and what they are: ``true``, ``given`` or nothing."""
        true = same_spelling(str(self.row.get("answer", "")))
        found = []
        for number, (answer, probability) in enumerate(self.row.get("best") or []):
            correct = bool(self.row.get("correct"))
            is_true = correct if number == 0 else not correct and same_spelling(str(answer)) == true
            if number < _SHOWN or is_true:
                found.append((str(answer), 100 * float(probability), "true" if is_true else "given" if number == 0 else ""))
        return found


@dataclass
class Examples:
    """The examples of an evaluation, and what is missing of them and why."""

    right: list[Example] = field(default_factory=list)
    wrong: list[Example] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def examples_of(evaluation: Evaluation, count: int, shards: Path | None, explain: bool) -> Examples:
    """``count`` wrong answers, the surest of each question type in turn, and ``count`` right ones, the least expected first.

    An image at most once among each. ``shards``: where the questions' shards are now; by default where they were at the
    evaluation. ``explain``: with overlays.
    """
    found = Examples()
    chosen = {True: unexpected(evaluation.predictions, count), False: surest_mistakes(evaluation.predictions, count)}
    keys = {row["image"] for rows in chosen.values() for row in rows}
    pictures: dict[str, bytes] = {}
    if keys:
        try:
            pictures = _pictures(evaluation, keys, shards)
        except M2I2Error as e:
            found.missing.append(f"Images are missing: {e}")
    explained: Callable[[Image.Image, dict[str, Any]], Image.Image] | None = None
    if explain and pictures:
        try:
            explained = _explainer(evaluation)
        except M2I2Error as e:
            found.missing.append(f"Grad-CAM overlays are missing: {e}")
    for right, rows in chosen.items():
        for row in rows:
            image = decode(pictures[row["image"]], row["image"]) if row["image"] in pictures else None
            try:
                drawn = inlined(explained(image, row)) if image and explained else ""
            except M2I2Error as e:  # such as a question without words
                drawn = ""
                found.missing.append(f"The Grad-CAM overlay of question {row.get('id')} is missing: {e}")
            (found.right if right else found.wrong).append(Example(row, inlined(image) if image else "", drawn))
    return found


def surest_mistakes(rows: Rows, count: int) -> Rows:
    """The wrong answers of the highest probability, one of each question type in turn, the type of the surest one first."""
    types: dict[str, Rows] = {}
    for row in sorted((row for row in rows if not row.get("correct")), key=_probability, reverse=True):
        types.setdefault(question_type(row), []).append(row)
    return _in_turn(types.values(), count)


def unexpected(rows: Rows, count: int) -> Rows:
    """Right answers that the question alone does not give away, one of each question type in turn.

    First come those whose probability is highest relative to how often the answer is the true one to the same question, or, if
    that was asked fewer than `FEW` times, to questions of its type.
    """
    questions, answers = Counter(_asked(row) for row in rows), Counter((_asked(row), _true(row)) for row in rows)
    kinds, of_kind = Counter(_kind(row) for row in rows), Counter((_kind(row), _true(row)) for row in rows)

    def gain(row: dict[str, Any]) -> float:
        if questions[_asked(row)] >= FEW:
            return _probability(row) * questions[_asked(row)] / answers[_asked(row), _true(row)]
        return _probability(row) * kinds[_kind(row)] / of_kind[_kind(row), _true(row)]

    types: dict[str, Rows] = {}
    for row in sorted((row for row in rows if row.get("correct")), key=gain, reverse=True):
        types.setdefault(question_type(row), []).append(row)
    return _in_turn(types.values(), count)


def _in_turn(groups: Iterable[Rows], count: int) -> Rows:
    """The first row of each group, then the second of each, an image at most once; ``count`` at most."""
    chosen: dict[str, dict[str, Any]] = {}
    waiting = [iter(group) for group in groups]
    while waiting and len(chosen) < count:
        for group in list(waiting):
            row = next((row for row in group if str(row.get("image")) not in chosen), None)
            if row is None:
                waiting.remove(group)
            elif len(chosen) < count:
                chosen[str(row.get("image"))] = row
    return list(chosen.values())


def _asked(row: dict[str, Any]) -> str:
    return same_spelling(str(row.get("question", "")))


def _true(row: dict[str, Any]) -> str:
    return same_spelling(str(row.get("answer", "")))


def _kind(row: dict[str, Any]) -> tuple[str, bool]:
    return question_type(row), bool(row.get("closed"))


def inlined(image: Image.Image, side: int = _SIDE) -> str:
    """An image as a data: address, scaled down to ``side``."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


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


def _explainer(evaluation: Evaluation) -> Callable[[Image.Image, dict[str, Any]], Image.Image]:
    """A function from an image and its answered question to the image with the map of the answer over it."""
    from m2i2.workflows.answering import load_model

    answerer = load_model(Path(str(evaluation.results.get("checkpoint", "")))).answerer()
    return lambda image, row: overlay(image, answerer.explain(image, row["question"], row["prediction"]).map)
