"""Under the form `fixed`, ranking and beam search can give every test answer that training gave; `official` is counted."""

from pathlib import Path

import pytest

from m2i2.data.records import Question
from m2i2.data.sources import open_source
from m2i2.data.text.cleaning import Normalisation, clean_answer, clean_question, scored_answer
from m2i2.data.text.fit import misfit
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from m2i2.evaluation.protocols import PROTOCOLS
from m2i2.evaluation.reach import Writing, answers_in_reach
from tests.perfect import given_by_a_perfect_model, right

SETS = {"vqa_rad": ("vqa-rad", {}), "slake_en": ("slake", {}), "slake_zh": ("slake", {"language": "zh"})}
FOLDERS = {"vqa-rad": "vqa_rad", "slake": "slake"}
_read: dict[str, tuple[list[Question], list[Question]]] = {}


def questions(data: Path, name: str) -> tuple[list[Question], list[Question]]:
    """Training and test questions, read once."""
    if name not in _read:
        source, options = SETS[name]
        records = list(open_source("vqa", source, data / FOLDERS[source], **options))
        train, test = ([q for r in records if r.split == split for q in r.questions] for split in ("train", "test"))
        _read[name] = train, test
    return _read[name]


def own_tokenizer(train: list[Question], test: list[Question]) -> Tokenizer:
    """A vocabulary of the data set's own words and signs."""
    answers = [clean_answer(q.answer, "fixed") for q in (*train, *test)]
    return train_tokenizer([*answers, *(clean_question(q.question, 50, "fixed") for q in train)], 8000)


def writing(tokenizer: Tokenizer, form: Normalisation) -> Writing:
    return Writing(tokenizer=tokenizer, form=form, positions=512)


def check_everything_in_reach(train: list[Question], test: list[Question], tokenizer: Tokenizer, *, give: bool = True) -> int:
    """How many test questions have an answer that training gave; each of them can be given both ways, and is where ``give``."""
    how = writing(tokenizer, "fixed")
    candidates = PROTOCOLS["clean"].candidates(train, [], "fixed").answers
    known = {scored_answer(q.answer, "fixed") for q in train if q.answer.strip()}
    asked = [q for q in test if scored_answer(q.answer, "fixed") in known]
    distinct = list({q.answer: q for q in asked}.values())
    for given in given_by_a_perfect_model(distinct, train, candidates, how, tokenizer) if give else ():
        wrong = [(q.answer, a) for q, a, yes in zip(distinct, given, right(given, distinct, how), strict=True) if not yes]
        assert wrong == []
    found = answers_in_reach(test, train, candidates, how, how.longest(q.answer for q in train))
    assert found["no_candidate"] == found["not_in_training"] == len(test) - len(asked)
    for reason in ("candidate_not_as_trained", "candidate_shares_tokens", "cannot_be_written", "cleaned_to_nothing"):
        assert found[reason] == 0, reason
    return len(asked)


@pytest.mark.parametrize("name", SETS)
def test_every_answer_that_training_gave_can_be_given(shared_data: Path, name: str) -> None:
    train, test = questions(shared_data, name)
    assert check_everything_in_reach(train, test, own_tokenizer(train, test)) == KNOWN[name]


@pytest.mark.parametrize("name", ["vqa_rad", "slake_en"])
def test_so_they_can_with_berts_vocabulary(shared_data: Path, minilm: Path, name: str) -> None:
    train, test = questions(shared_data, name)
    assert check_everything_in_reach(train, test, load_tokenizer(minilm), give=False) == KNOWN[name]


@pytest.mark.parametrize("name", SETS)
def test_official_counts_what_it_cannot_give(shared_data: Path, name: str) -> None:
    train, test = questions(shared_data, name)
    how = writing(own_tokenizer(train, test), "official")
    found = answers_in_reach(test, train, PROTOCOLS["paper"].candidates(train, test).answers, how, 10)
    own = sum(how.ranked(q.answer.strip().lower()) != how.trained(q.answer) for q in test)
    assert (own, found["candidate_not_as_trained"]) == OFFICIAL[name]


def test_an_english_vocabulary_does_not_fit_chinese_questions(shared_data: Path) -> None:
    train, test = questions(shared_data, "slake_zh")
    english = own_tokenizer(*questions(shared_data, "slake_en"))
    fits = writing(english, "fixed").fits(test, (q.answer for q in train))
    assert fits["questions"].share > 0.7 and misfit(fits, 0.05)


KNOWN = {"vqa_rad": 406, "slake_en": 1059, "slake_zh": 1028}
"""Of 451, 1,061 and 1,033 test questions."""
OFFICIAL = {"vqa_rad": (38, 35), "slake_en": (101, 92), "slake_zh": (77, 77)}
"""Test questions whose true answer's own candidate is not as trained, and those of which no right candidate is."""
