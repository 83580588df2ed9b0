"""Which answers a model can give at all: out of reach, told apart by nothing, or unknown to the vocabulary.

A model writes what it was trained to write. An answer that training never gave, a candidate whose tokens differ from those
that training writes, two answers with the same tokens or with the same scored form: none of it shows in an accuracy, and
each decides some of it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m2i2.data.records import Question
from m2i2.data.text.cleaning import (
    TEST_WORDS,
    Normalisation,
    clean_answer,
    clean_question,
    ranked_answer,
    same_spelling,
    scored_answer,
)
from m2i2.data.text.fit import Fit, fit_of
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.inference.generation import LONGEST

_EXAMPLES = 5
Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How answers become tokens and texts again."""

    tokenizer: Tokenizer
    form: Normalisation
    positions: int
    """Tokens that the model reads at most."""

    def trained(self, answer: str) -> Tokens:
        """What training writes for an answer of the data: [CLS] ... [SEP] [SEP]."""
        return tuple(self.tokenizer.encode_answer(clean_answer(answer, self.form), self.positions))

    def ranked(self, candidate: str) -> Tokens:
        """What a ranking scores for a candidate."""
        return tuple(self.tokenizer.encode_answer(ranked_answer(candidate, self.form), self.positions))

    def scored(self, answer: str) -> str:
        """The form in which an answer is compared."""
        return scored_answer(answer, self.form)

    def longest(self, answers: Iterable[str]) -> int:
        """Tokens that beam search has to write at most: under ``fixed`` as many as the longest answer, else the official 10."""
        if self.form != "fixed":
            return LONGEST
        return max((len(self.trained(answer)) - 3 for answer in dict.fromkeys(answers)), default=LONGEST)

    def written(self, tokens: Tokens, most: int) -> str | None:
        """The text of an answer that beam search writes of at most ``most`` tokens; None where it cannot write it."""
        inner = tokens[1 : tokens.index(self.tokenizer.sep_id)]
        return self.tokenizer.decode(inner) if 0 < len(inner) <= most else None

    def fits(self, questions: Iterable[Question], answers: Iterable[str]) -> dict[str, Fit]:
        """How well the vocabulary fits questions and answers."""
        asked = (clean_question(question.question, TEST_WORDS, self.form) for question in questions)
        return {
            "questions": fit_of(self.tokenizer, asked),
            "answers": fit_of(self.tokenizer, (clean_answer(answer, self.form) for answer in answers)),
        }


def answers_in_reach(
    asked: Sequence[Question], train: Sequence[Question], candidates: Collection[str], writing: Writing, most: int
) -> dict[str, Any]:
    """For results.json: of how many questions the true answer can be given, and what is wrong with the others.

    ``train``: the training questions that the protocol knows; ``candidates``: what a ranking chooses from; ``most``: tokens
    that beam search writes.
    """
    sequences = _grouped((writing.ranked(candidate), candidate) for candidate in candidates)
    by_form = _grouped((writing.scored(candidate), candidate) for candidate in candidates)
    trained = {answer: writing.trained(answer) for answer in dict.fromkeys(q.answer for q in train)}
    known = _grouped((writing.scored(answer), tokens) for answer, tokens in trained.items())
    spellings: dict[str, dict[str, str]] = defaultdict(dict)
    for answer in dict.fromkeys(q.answer for q in (*train, *asked)):
        spellings[writing.scored(answer)].setdefault(same_spelling(answer), " ".join(answer.lower().split()))
    counts = dict.fromkeys(_MEANINGS, 0)
    for question in asked:
        for reason in _obstacles(question.answer, writing, by_form, sequences, known, most):
            counts[reason] += 1
        form = writing.scored(question.answer)
        counts["scored_as_another_answer"] += len(spellings[form]) > 1
    fits = writing.fits(asked, (q.answer for q in (*train, *asked)))
    return {
        "form": writing.form,
        "questions": len(asked),
        **counts,
        "candidates_sharing_tokens": _shared(sequences.values()),
        "answers_scored_alike": _shared(group.values() for group in spellings.values()),
        "unknown_tokens_percent": {name: round(100 * fit.share, 2) for name, fit in fits.items()},
    }


_MEANINGS = {
    "no_candidate": "ranking cannot give the true answer: it is none of the candidates",
    "candidate_not_as_trained": "the true answer's candidate has other tokens than training writes for it",
    "candidate_shares_tokens": "the true answer's candidate has the same tokens as another answer",
    "not_in_training": "no training question has the true answer",
    "cannot_be_written": "beam search cannot write the true answer, although training gave it",
    "cleaned_to_nothing": "the true answer is cleaned to an empty text",
    "scored_as_another_answer": "the true answer scores as equal to a different one",
}
"""What `answers_in_reach` counts questions of."""


def _obstacles(
    answer: str,
    writing: Writing,
    by_form: dict[str, list[str]],
    sequences: dict[Tokens, list[str]],
    known: dict[str, list[Tokens]],
    most: int,
) -> list[str]:
    """What stands in the way of the true answer of one question."""
    form, found = writing.scored(answer), []
    right = by_form.get(form, [])
    if not right:
        found.append("no_candidate")
    elif not (good := [c for c in right if writing.ranked(c) == writing.trained(c)]):
        found.append("candidate_not_as_trained")
    elif all(any(writing.scored(other) != form for other in sequences[writing.ranked(c)]) for c in good):
        found.append("candidate_shares_tokens")
    if form not in known:
        found.append("not_in_training")
    else:
        texts = (writing.written(tokens, most) for tokens in known[form])
        if not any(text is not None and writing.scored(text) == form for text in texts):
            found.append("cannot_be_written")
    if answer.strip() and not clean_answer(answer, writing.form):
        found.append("cleaned_to_nothing")
    return found


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return dict(groups)


def _shared(groups: Iterable[Iterable[str]]) -> dict[str, Any]:
    """How many different texts fall together, into how many, and the first examples."""
    together = [group for group in map(sorted, map(set, groups)) if len(group) > 1]
    return {"answers": sum(map(len, together)), "become": len(together), "examples": together[:_EXAMPLES]}


def remarks(found: dict[str, Any]) -> list[str]:
    """`answers_in_reach` in sentences: one for everything that is not as it should be."""
    total = found["questions"]
    lines = [f"{found[name]} of {total} questions: {meaning}." for name, meaning in _MEANINGS.items() if found[name]]
    for name, what in (
        ("candidates_sharing_tokens", "candidates have the tokens of others"),
        ("answers_scored_alike", "different answers score as equal"),
    ):
        if count := found[name]["answers"]:
            first = ", ".join(repr(text) for text in found[name]["examples"][0][:3])
            lines.append(f"{count} {what} ({count} become {found[name]['become']}; for instance {first}).")
    unknown = found["unknown_tokens_percent"]
    if any(unknown.values()):
        lines.append(
            f"[UNK]: {unknown['questions']:.1f} % of the tokens of the questions, {unknown['answers']:.1f} % of the answers'."
        )
    return lines
