"""Protocols: which questions are asked, which answers may be given, and which habits a reader must know of."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation, candidate_answers, scored_answer
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
    make_candidates: Callable[[Sequence[Question], Sequence[Question], Normalisation], Candidates]
    """From the training and the test questions, in the form that the model was trained with."""
    blind: bool = False
    """No test answer may be known before the model has answered."""

    def candidates(
        self, train: Sequence[Question], test: Sequence[Question], normalisation: Normalisation = "official"
    ) -> Candidates:
        """The answers that ranking chooses from; a blind protocol is not given the test questions at all.

        M2I2Error where the list of a blind protocol holds an answer that is not a training answer.
        """
        made = self.make_candidates(train, () if self.blind else test, normalisation)
        given = {scored_answer(q.answer, "fixed") for q in train} if self.blind else set()
        if self.blind and (smuggled := sorted(a for a in made.answers if scored_answer(a, "fixed") not in given)):
            raise M2I2Error(
                f"The candidate list holds {len(smuggled)} answers that no training question has, the first {smuggled[0]!r}: the "
                f"protocol {self.name} allows training answers only, because others can only come from the test set."
            )
        return made

    def habits(self, source: str, normalisation: Normalisation = "official") -> tuple[str, ...]:
        """Everything a reader has to know of a result on a data set, scored in a form."""
        first, *others = self.general_habits
        if source == "phantoms":  # there are no published numbers on synthetic images
            others = [habit for habit in others if habit != _PUBLISHED]
        return (first, _FORMS[normalisation], *others, *self.habits_of.get(source, ()))

    def views(self, source: str, split: str = "test") -> tuple[View, ...]:
        """The views of a split's questions, named by the split; those of VQA-RAD's test questions by their kind alone."""
        everything = View(split, lambda q: True)
        if source != "vqa-rad":
            return (everything,)
        freeform = View("freeform", lambda q: q.metadata.get("phrase_type") == "freeform")
        if split == "test":
            return (freeform, replace(everything, name="freeform + paraphrased"))
        return (replace(freeform, name=f"{split}, freeform"), everything)


_FORMS: dict[Normalisation, str] = {
    "official": "Exact match after the official clean-up.",
    "fixed": "Exact match in the form `fixed`: all letters, digits and signs count; case, accents and spaces do not.",
    "fixed-0.1": "Exact match in version 0.1's form `fixed`, which loses numbers, articles and signs as the official one does.",
}


def _official_candidates(train: Sequence[Question], test: Sequence[Question], normalisation: Normalisation) -> Candidates:
    answers = candidate_answers((q.answer for q in (*train, *test)), normalisation)
    return Candidates(answers, "answers of the training AND of the test questions")


def _training_candidates(train: Sequence[Question], test: Sequence[Question], normalisation: Normalisation) -> Candidates:
    answers = candidate_answers((q.answer for q in train), normalisation)
    return Candidates(answers, "answers of the training questions (without rewrites of test questions)")


_PUBLISHED = "The published numbers are the best of all epochs on the test set; ours are the last checkpoint's."

PROTOCOLS = {
    "paper": Protocol(
        "paper",
        (
            "The candidate list holds the test questions' answers as well as the training questions' (official code).",
            _PUBLISHED,
        ),
        {"vqa-rad": ("The training questions hold rewrites of 284 test questions, and all of the test images (official split).",)},
        _official_candidates,
    ),
    "clean": Protocol(
        "clean",
        (
            "The candidate list holds training answers only: a test answer that training never gave cannot be found by ranking.",
            "The checkpoint was chosen without the test set, where the run was trained under this protocol.",
        ),
        {
            "vqa-rad": (
                "No rewrite of a test question is trained on; the test images themselves all occur in training, with other "
                "questions, because the data set has no other images.",
                "One training question asks a test question's own words about its image ('Where is the lesion located?', OSF "
                "record 422); it is not a rewrite and stays, as in the published count of 2,773.",
            )
        },
        _training_candidates,
        blind=True,
    ),
}


def protocol(name: str) -> Protocol:
    """A protocol by name; M2I2Error lists the names there are."""
    if name not in PROTOCOLS:
        raise M2I2Error(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
