"""Protocols: which questions are asked, which answers may be given, and which habits a reader must know of."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from m2i2.data.records import Question
from m2i2.errors import M2I2Error


@dataclass(frozen=True)
class View:
    """A part of the test questions that is scored by itself."""

    name: str
    contains: Callable[[Question], bool]


@dataclass(frozen=True)
class Candidates:
    """The answers that a ranking chooses from, and where they come from."""

    answers: tuple[str, ...]
    origin: str

    @property
    def provenance(self) -> dict[str, object]:
        """For results.json."""
        digest = hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()
        return {"origin": self.origin, "count": len(self.answers), "sha256": digest}


@dataclass(frozen=True)
class Protocol:
    """How published or our own numbers come about."""

    name: str
    general_habits: tuple[str, ...]
    """What a reader has to know before comparing."""
    habits_of: Mapping[str, tuple[str, ...]]
    """What holds for one data set only, by source."""
    candidates: Callable[[Sequence[Question], Sequence[Question]], Candidates]
    """From the training and the test questions."""

    def habits(self, source: str) -> tuple[str, ...]:
        """Everything a reader has to know of a result on a data set."""
        return self.general_habits + self.habits_of.get(source, ())

    def views(self, source: str) -> tuple[View, ...]:
        """The views of a data set's test questions."""
        if source == "vqa-rad":
            return (
                View("freeform", lambda q: q.metadata.get("phrase_type") == "freeform"),
                View("freeform + paraphrased", lambda q: True),
            )
        return (View("test", lambda q: True),)


def distinct_answers(questions: Iterable[Question]) -> tuple[str, ...]:
    """Different answers in the order of their first appearance, in lower case (517 for all of VQA-RAD, as official)."""
    return tuple(dict.fromkeys(q.answer.strip().lower() for q in questions))


def _official_candidates(train: Sequence[Question], test: Sequence[Question]) -> Candidates:
    return Candidates(distinct_answers([*train, *test]), "answers of the training AND of the test questions")


PROTOCOLS = {
    "paper": Protocol(
        "paper",
        (
            "The candidate list holds the test questions' answers as well as the training questions' (official code).",
            "Exact match after the official clean-up.",
            "The published numbers are the best of all epochs on the test set; ours are the last checkpoint's.",
        ),
        {"vqa-rad": ("The training questions hold rewrites of 284 test questions, and all of the test images (official split).",)},
        _official_candidates,
    ),
}


def protocol(name: str) -> Protocol:
    """A protocol by name; M2I2Error lists the names there are."""
    if name not in PROTOCOLS:
        raise M2I2Error(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
