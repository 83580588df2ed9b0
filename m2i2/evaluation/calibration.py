"""Whether the probabilities that a model gives its answers are true: reliability, expected calibration error, Brier score."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2i2.data.text.cleaning import Normalisation
from m2i2.evaluation.scoring import is_correct, resampled_means, share_interval
from m2i2.inference.predictor import Prediction

BINS = 10
"""Of equal width between 0 and 1."""


def calibration(given: Sequence[Prediction], form: Normalisation) -> dict[str, Any]:
    """For results.json: by kind of question, ECE and Brier score (in [0, 1]) and the bins of a reliability diagram.

    The probability is the best answer's, as `Prediction.best` has it. ECE: Guo et al., ICML 2017, equation 3. A perfectly
    calibrated model's is above 0 too, the more so the fewer questions there are; ``ece_if_perfect`` is its mean then.
    """
    confidence = np.array([g.best[0][1] for g in given]).clip(0, 1)
    right = np.array([is_correct(g.best[0][0], g.question.answer, form) for g in given], dtype=float)
    closed = np.array([g.question.closed for g in given])
    images = np.array([g.key for g in given])
    kinds = {"overall": np.ones_like(closed), "closed": closed, "open": ~closed}
    return {kind: _of(confidence[mask], right[mask], images[mask]) for kind, mask in kinds.items() if mask.any()}


def _of(confidence: np.ndarray, right: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for number in sorted(set(place.tolist())):
        mine = place == number
        low, high = share_interval(right[mine].tolist(), images[mine].tolist())
        bins.append(
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "questions": int(mine.sum()),
                "confidence": round(float(confidence[mine].mean()), 4),
                "accuracy": round(float(right[mine].mean()), 4),
                "interval": [round(low, 4), round(high, 4)],
            }
        )
    brier = resampled_means(((confidence - right) ** 2).tolist(), images.tolist())
    drawn = np.random.default_rng(0).random((200, len(confidence))) < confidence
    return {
        "questions": len(right),
        "ece": round(_ece(confidence, right, place), 4),
        "ece_if_perfect": round(float(np.mean([_ece(confidence, row.astype(float), place) for row in drawn])), 4),
        "brier": round(float(((confidence - right) ** 2).mean()), 4),
        "brier_interval": [round(float(end), 4) for end in np.percentile(brier, [2.5, 97.5])],
        "confidence": round(float(confidence.mean()), 4),
        "accuracy": round(float(right.mean()), 4),
        "bins": bins,
    }


def _ece(confidence: np.ndarray, right: np.ndarray, place: np.ndarray) -> float:
    """Mean over the answers of the distance between their bin's accuracy and confidence."""
    gaps = np.bincount(place, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
