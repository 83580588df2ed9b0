"""The image-dependence certificate: how many of the right answers need the image.

The same model answers the same questions with the right image, a blank one, noise, and that of another question of the same
kind. What it loses without the image is the part of its accuracy that the image is worth; the rest it had from the questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2i2.data.text.cleaning import Normalisation
from m2i2.evaluation.scoring import FEW, difference_interval, is_correct, share_interval
from m2i2.inference.predictor import Prediction

CONDITIONS = {
    "shuffled": "the image of another question of the same kind",
    "blank": "a blank image",
    "noise": "noise",
}
"""What stands in the image's place."""


def certificate(given: Sequence[Prediction], instead: Mapping[str, Sequence[Prediction]], form: Normalisation) -> dict[str, Any]:
    """For results.json: with each image in ``instead`` (of `CONDITIONS`), accuracy, what is lost and which answers change.

    ``given``: the answers with the right image, ``instead``: those to the same questions in the same order. Percent and points,
    95 % intervals over images; by kind of question and, of at least `FEW` questions, by type.
    """
    right = np.array([is_correct(g.best[0][0], g.question.answer, form) for g in given], dtype=float)
    other = {
        name: np.array([is_correct(p.best[0][0], p.question.answer, form) for p in mine], dtype=float)
        for name, mine in instead.items()
    }
    changed = {
        name: np.array([not is_correct(p.best[0][0], g.best[0][0], form) for p, g in zip(mine, given, strict=True)], dtype=float)
        for name, mine in instead.items()
    }
    images = np.array([g.key for g in given])
    closed = np.array([g.question.closed for g in given])
    types = np.array([g.question.metadata.get("question_type", "").strip() for g in given])

    def part(mask: np.ndarray) -> dict[str, Any]:
        clusters = images[mask].tolist()
        found: dict[str, Any] = {"questions": int(mask.sum()), "right_image": _share("accuracy", right[mask], clusters)}
        for name in instead:
            lost = (right - other[name])[mask]
            found[name] = {
                **_share("accuracy", other[name][mask], clusters),
                "lost": _points(float(lost.mean())),
                "lost_interval": [_points(end) for end in difference_interval(lost.tolist(), clusters)],
                **_share("changed", changed[name][mask], clusters),
            }
        return found

    kinds = {"overall": np.ones_like(closed), "closed": closed, "open": ~closed}
    counts = {name: int((types == name).sum()) for name in sorted(set(types.tolist())) if name}
    large = sorted((name for name, count in counts.items() if count >= FEW), key=lambda name: -counts[name])
    return {
        **{kind: part(mask) for kind, mask in kinds.items() if mask.any()},
        "by_question_type": {name: part(types == name) for name in large},
    }


def _points(share: float) -> float:
    return round(100 * share, 2)


def _share(name: str, values: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """A mean in percent as ``name``, and its interval."""
    label = "interval" if name == "accuracy" else f"{name}_interval"
    return {name: _points(float(values.mean())), label: [_points(end) for end in share_interval(values.tolist(), clusters)]}


def least(part: Mapping[str, Any]) -> str:
    """The condition under which the model loses least: what it has without the right image at best."""
    return min((name for name in CONDITIONS if name in part), key=lambda name: part[name]["lost"])


def sentence(found: Mapping[str, Any]) -> str:
    """A certificate in words: "accuracy 62.0 %, of which 5.0 points [2.1, 7.8] need the image ..."."""
    part = found["overall"]
    name = least(part)
    lost, (low, high) = part[name]["lost"], part[name]["lost_interval"]
    worth = f"of which {lost:.1f} points [{low:.1f}, {high:.1f}] need the image" if lost > 0 else "none of which needs the image"
    text = (
        f"accuracy {part['right_image']['accuracy']:.1f} %, {worth}: with {CONDITIONS[name]} it has "
        f"{part[name]['accuracy']:.1f} %, and {part[name]['changed']:.1f} % of its answers change."
    )
    if low <= 0 < lost:
        text += " The interval includes 0: these questions do not tell whether it looks at the image."
    return text
