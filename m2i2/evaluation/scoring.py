"""How answers are scored: exact match after the clean-up, token F1, and intervals that know of shared images.

The interval is the 95 % percentile bootstrap over images, not over questions: an image comes with several questions, whose
answers rise and fall together, and the model meets new images, not new questions about the old ones. Of few images, and of
answers that are all right or all wrong, the bootstrap knows no spread: there the interval also covers that of Wilson (of
Agresti and Min for differences), with the images as its sample.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation, scored_answer

RESAMPLES = 2000
"""Bootstrap samples; the interval's ends move by about a tenth of a point from seed to seed."""
FEW = 10
"""Images below which the bootstrap alone is not trusted."""
_Z = 1.959964
"""Of a 95 % interval of the normal distribution."""


@dataclass(frozen=True)
class Answered:
    """A question with the answer that was given."""

    question: Question
    key: str
    """Which image it is about."""
    prediction: str
    correct: bool


def is_correct(prediction: str, truth: str, normalisation: Normalisation = "official") -> bool:
    """Exact match of both answers' scored forms."""
    return scored_answer(prediction, normalisation) == scored_answer(truth, normalisation)


def token_f1(prediction: str, truth: str, normalisation: Normalisation = "official") -> float:
    """Harmonic mean of precision and recall of the answer's words, each counted as often as it occurs (SQuAD's F1)."""
    given, true = (Counter(scored_answer(text, normalisation).split()) for text in (prediction, truth))
    if not given or not true:
        return float(given == true)
    shared = (given & true).total()
    return 2 * shared / (given.total() + true.total())


def resampled_means(values: Sequence[float], clusters: Sequence[str], resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of ``values`` over bootstrap samples of whole ``clusters``; the same for the same input."""
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(numbers, weights=np.asarray(values, dtype=float)), np.bincount(numbers)
    drawn = _drawn(len(sizes), resamples)
    return (drawn @ sums) / (drawn @ sizes)


def resampled_medians(values: Sequence[float], clusters: Sequence[str], resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Lower medians of ``values`` over the same bootstrap samples as `resampled_means`."""
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    order = np.argsort(np.asarray(values, dtype=float), kind="stable")
    ordered = np.asarray(values, dtype=float)[order]
    drawn = _drawn(int(numbers.max()) + 1, resamples)
    found = [np.cumsum(row[numbers[order]]) for row in drawn]
    return np.array([ordered[np.searchsorted(below, below[-1] / 2)] for below in found])


@lru_cache(maxsize=4)
def _drawn(clusters: int, resamples: int) -> NDArray[np.float64]:
    """[resamples, clusters]: how often each cluster is in each bootstrap sample; kept, because many means share it."""
    return np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def share_interval(right: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """95 % interval, in [0, 1], of the mean of ``right`` (each in [0, 1]) over ``clusters``; never without width."""
    low, high = _percentiles(right, clusters)
    count = len(set(clusters))
    if low < high and count >= FEW:
        return low, high
    wilson = wilson_interval(float(np.mean(right)), count)
    return min(low, wilson[0]), max(high, wilson[1])


def difference_interval(change: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """95 % interval, in [-1, 1], of the mean of paired changes (each in [-1, 1]) over ``clusters``; never without width."""
    low, high = _percentiles(change, clusters)
    count = len(set(clusters))
    if low < high and count >= FEW:
        return low, high
    values = np.asarray(change, dtype=float)
    down, up = (count * float(np.mean(part)) + 0.5 for part in (np.maximum(-values, 0), np.maximum(values, 0)))
    pairs = count + 2  # Agresti and Min, Statistics in Medicine 2005: half a pair more of every outcome
    centre = (up - down) / pairs
    half = _Z * math.sqrt(max(up + down - (up - down) ** 2 / pairs, 0.0)) / pairs
    return min(low, max(-1.0, centre - half)), max(high, min(1.0, centre + half))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a ``share`` of ``count`` (JASA 1927)."""
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    centre, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _percentiles(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    low, high = np.percentile(resampled_means(values, clusters), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of how many, and how sure that is."""

    correct: int
    total: int
    interval: tuple[float, float] | None = None
    """95 %, in percent."""

    @property
    def percent(self) -> float | None:
        """None where there was no question."""
        return 100 * self.correct / self.total if self.total else None

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        percent = self.percent
        return {
            "accuracy": None if percent is None else round(percent, 2),
            "interval": None if self.interval is None else [round(end, 2) for end in self.interval],
            "correct": self.correct,
            "total": self.total,
        }


def accuracy(answers: Iterable[Answered]) -> Accuracy:
    """Accuracy of some answers, with its interval over images."""
    rows = list(answers)
    right = [a.correct for a in rows]
    if not rows:
        return Accuracy(0, 0)
    low, high = share_interval(right, [a.key for a in rows])
    return Accuracy(sum(right), len(rows), (100 * low, 100 * high))


def by_kind(answers: Sequence[Answered]) -> dict[str, Accuracy]:
    """Closed, open and overall accuracy."""
    return {
        "closed": accuracy(a for a in answers if a.question.closed),
        "open": accuracy(a for a in answers if not a.question.closed),
        "overall": accuracy(answers),
    }


def by_field(answers: Sequence[Answered], name: str) -> dict[str, Accuracy]:
    """Accuracy by a field of the questions' metadata, most frequent first; empty where no question has it."""
    groups: dict[str, list[Answered]] = {}
    for answer in answers:
        groups.setdefault(answer.question.metadata.get(name, "unknown"), []).append(answer)
    if set(groups) <= {"unknown"}:
        return {}
    return {key: accuracy(rows) for key, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))}


def mean_f1(answers: Sequence[Answered], normalisation: Normalisation = "official") -> float | None:
    """Mean token F1, percent."""
    values = [token_f1(a.prediction, a.question.answer, normalisation) for a in answers]
    return round(100 * float(np.mean(values)), 2) if values else None


def agreement(answers: Sequence[tuple[str, str]], normalisation: Normalisation = "official") -> dict[str, Any] | None:
    """How often two ways to answer the same questions give the same answer; None where there are no answers."""
    same = sum(is_correct(one, other, normalisation) for one, other in answers)
    return {"same": same, "total": len(answers), "percent": round(100 * same / len(answers), 2)} if answers else None


def paraphrase_consistency(answers: Sequence[Answered], normalisation: Normalisation = "official") -> dict[str, Any] | None:
    """Over pairs of an original and its paraphrase (same ``linked_id``, image and true answer): same answer, and both right.

    None where the data links nothing. Pairs whose true answers differ ask for different things and are left out.
    """
    originals: dict[tuple[str, str], list[Answered]] = {}
    for answer in answers:
        if answer.question.metadata.get("phrase_type") == "freeform" and (link := answer.question.metadata.get("linked_id")):
            originals.setdefault((link, answer.key), []).append(answer)
    pairs = [
        (first, second)
        for second in answers
        if second.question.metadata.get("phrase_type") == "para"
        for first in originals.get((second.question.metadata.get("linked_id", ""), second.key), [])
        if is_correct(first.question.answer, second.question.answer, normalisation)
    ]
    if not pairs:
        return None
    alike = [is_correct(a.prediction, b.prediction, normalisation) for a, b in pairs]
    low, high = share_interval(alike, [a.key for a, _ in pairs])
    return {
        "pairs": len(pairs),
        "same_answer": sum(alike),
        "same_answer_percent": round(100 * sum(alike) / len(pairs), 2),
        "same_answer_interval": [round(100 * low, 2), round(100 * high, 2)],
        "both_right": sum(a.correct and b.correct for a, b in pairs),
        "one_right": sum(a.correct != b.correct for a, b in pairs),
    }
