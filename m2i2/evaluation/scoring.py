"""How answers are scored: exact match after the official clean-up, over closed, open and all questions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m2i2.data.records import Question
from m2i2.data.text import Normalisation, scored_answer


@dataclass(frozen=True)
class Answered:
    """A question with the answer that was given."""

    question: Question
    key: str
    prediction: str
    correct: bool


def is_correct(prediction: str, truth: str, normalisation: Normalisation = "official") -> bool:
    """Exact match of both answers' scored forms."""
    return scored_answer(prediction, normalisation) == scored_answer(truth, normalisation)


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of how many."""

    correct: int
    total: int

    @property
    def percent(self) -> float | None:
        """None where there was no question."""
        return 100 * self.correct / self.total if self.total else None

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        percent = self.percent
        return {
            "accuracy": None if percent is None else round(percent, 2),
            "correct": self.correct,
            "total": self.total,
        }


def accuracy(answers: Iterable[Answered]) -> Accuracy:
    """Accuracy of some answers."""
    rows = [a.correct for a in answers]
    return Accuracy(sum(rows), len(rows))


def by_kind(answers: Sequence[Answered]) -> dict[str, Accuracy]:
    """Closed, open and overall accuracy."""
    return {
        "closed": accuracy(a for a in answers if a.question.closed),
        "open": accuracy(a for a in answers if not a.question.closed),
        "overall": accuracy(answers),
    }


def by_type(answers: Sequence[Answered], name: str = "question_type") -> dict[str, Accuracy]:
    """Accuracy by a field of the questions' metadata, most frequent first."""
    groups: dict[str, list[Answered]] = {}
    for answer in answers:
        groups.setdefault(answer.question.metadata.get(name, "unknown"), []).append(answer)
    return {key: accuracy(rows) for key, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))}
