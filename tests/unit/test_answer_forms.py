"""Answers survive training, ranking, beam search and scoring in the form `fixed`; what `official` loses is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from m2i2.data.records import Question
from m2i2.data.text.cleaning import candidate_answers, clean_answer, clean_question, ranked_answer, scored_answer
from m2i2.data.text.fit import fit_of, misfit
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.evaluation.protocols import PROTOCOLS
from m2i2.evaluation.reach import Writing, answers_in_reach, remarks
from m2i2.evaluation.scoring import Answered, accuracy
from tests.perfect import given_by_a_perfect_model, right

CASES = Path(__file__).parents[1] / "cases"
PAIRS = {
    "words": ("two", "three"),
    "none": ("none", "0 lesions"),
    "hyphen": ("t1-weighted", "t2-weighted"),
    "article": ("the liver", "a spleen"),
    "greek": ("α", "β"),
    "letters": ("A", "B"),
    "sign": ("ER+", "ER-"),
    "cmp": ("<5 mm", ">5 mm"),
    "neg": ("-5", "5"),
    "decimals": ("1.5 cm", "15 cm"),
    "thousands": ("1,000", "1"),
    "inequality": ("=5", "5"),
    "zh": ("左肺", "右肺"),
    "x-ray": ("X-Ray", "x rayed"),
    "accents": ("hígado", "Übung"),
    "long": ("a very long answer of far more than ten tokens , which the official search cuts off", "short"),
    "sentence": ("No.", "yes, on the left."),
}


def questions(answers: tuple[str, ...], copies: int = 2) -> list[Question]:
    return [
        Question(id=f"{i}", question=f"which {i % len(answers)}", answer=a, closed=False) for i, a in enumerate(answers * copies)
    ]


def writing(form: Any, answers: tuple[str, ...]) -> Writing:
    characters = " ".join("".join(answers) + "+-<>=.,/")  # what a real vocabulary has
    return Writing(tokenizer=train_tokenizer([*answers, *characters], 2000), form=form, positions=64)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_answer_can_be_given_both_ways(pair: tuple[str, str]) -> None:
    train = questions(pair)
    how = writing("fixed", pair)
    forms = [clean_answer(answer, "fixed") for answer in pair]
    assert all(forms) and forms[0] != forms[1]
    assert forms == [scored_answer(form, "fixed") for form in forms] == [ranked_answer(answer, "fixed") for answer in pair]
    candidates = PROTOCOLS["clean"].candidates(train, [], "fixed").answers
    assert candidates == pair, "shown as the data spells them"
    ranked, written = given_by_a_perfect_model(train, train, candidates, how, how.tokenizer)
    assert ranked == [q.answer for q in train]
    assert right(written, train, how) == [True] * len(train)
    found = answers_in_reach(train, train, candidates, how, how.longest(pair))
    assert not any(value for name, value in found.items() if isinstance(value, int) and name != "questions"), found
    assert remarks(found) == []


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("words", "candidate_not_as_trained"),
        ("none", "candidate_not_as_trained"),
        ("hyphen", "candidate_not_as_trained"),
        ("article", "candidate_not_as_trained"),
        ("letters", "cleaned_to_nothing"),
        ("sign", "scored_as_another_answer"),
        ("cmp", "scored_as_another_answer"),
        ("neg", "scored_as_another_answer"),
        ("long", "cannot_be_written"),
    ],
)
def test_official_says_what_it_loses(case: str, reason: str) -> None:
    pair = PAIRS[case]
    train = questions(pair)
    how = writing("official", pair)
    candidates = PROTOCOLS["paper"].candidates(train, train).answers
    assert candidates == tuple(answer.lower() for answer in pair)
    found = answers_in_reach(train, train, candidates, how, how.longest(pair))
    assert found[reason] >= 2 and any(f"{found[reason]} of 4 questions" in line for line in remarks(found))
    ranked, written = given_by_a_perfect_model(train, train, candidates, how, how.tokenizer)
    both = [a and b for a, b in zip(right(ranked, train, how), right(written, train, how), strict=True)]
    if reason == "scored_as_another_answer":
        assert found["answers_scored_alike"]["examples"] == [sorted(answer.lower() for answer in pair)]
        assert all(right([pair[0]] * 4, train, how)), "a model that always says one of them is right always"
    elif case in ("words", "long"):
        assert not all(both)


def test_spellings_of_one_answer_are_one_candidate_in_the_most_frequent_spelling() -> None:
    answers = ["x-ray", "X-Ray", "X-Ray", "XRAY", "ER+ ", "er+", "ER+", "", " "]
    assert candidate_answers(answers, "fixed") == ("X-Ray", "ER+")
    assert candidate_answers(answers, "official") == ("x-ray", "xray", "er+", "")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("1.5 cm", "1. 5 cm", True),  # as a tokenizer decodes it
        ("左肺", "左 肺", True),
        ("Hígado", "higado", True),
        ("no.", "No", True),
        ("x ray", "X-Ray", True),
        ("e\u0301", "é", True),
        ("≠5", "=5", False),
        ("1.5", "15", False),
        ("5 mm", "5mm", False),
        ("none", "0", False),
        ("a", "b", False),
        ("10²", "102", False),
        (".", "", False),
    ],
)
def test_what_the_fixed_form_tells_apart(one: str, other: str, alike: bool) -> None:
    assert (scored_answer(one, "fixed") == scored_answer(other, "fixed")) == alike


def test_questions_keep_their_numbers_and_are_never_empty() -> None:
    assert clean_question("Is it  <1.5 cm, or more?", 50, "fixed") == "is it <1.5 cm or more"
    assert clean_question("which organ? - Open", 50, "fixed") == "which organ"
    assert clean_question("?", 50, "fixed") == "?"
    assert clean_question("is it 1.5 cm?", 50) == "is it 15 cm", "official"


def test_a_vocabulary_that_does_not_fit_is_said_with_its_figures() -> None:
    english = train_tokenizer(["is the lung normal", "yes", "no"], 200)
    fits = {"questions": fit_of(english, ["is it normal", "左肺正常吗"]), "answers": fit_of(english, ["yes", "no"])}
    assert fits["questions"].unknown == 5
    assert fits["answers"].share == 0
    problem = misfit(fits, 0.05)
    assert f"{100 * fits['questions'].share:.1f} % of the tokens of the questions" in problem and "start.tokenizer" in problem
    assert misfit(fits, 1.0) == misfit({"answers": fits["answers"]}, 0) == ""


def test_answers_that_share_tokens_or_that_training_never_gave_are_counted() -> None:
    train, asked = questions(("左肺", "右肺", "yes")), questions(("yes", "unseen", "左肺"), 1)
    how = Writing(tokenizer=train_tokenizer(["yes", "unseen"], 200), form="fixed", positions=64)
    candidates = PROTOCOLS["clean"].candidates(train, [], "fixed").answers
    found = answers_in_reach(asked, train, candidates, how, 10)
    assert found["candidates_sharing_tokens"] == {"answers": 2, "become": 1, "examples": [["右肺", "左肺"]]}
    assert (found["no_candidate"], found["not_in_training"], found["candidate_shares_tokens"]) == (1, 1, 1)
    assert found["cannot_be_written"] == 1, "[UNK] [UNK] says nothing"
    assert found["unknown_tokens_percent"]["answers"] > 50
    assert any("2 candidates have the tokens of others" in line for line in remarks(found))


def test_answers_that_training_never_gave_are_counted_and_their_score_has_a_width() -> None:
    rows = json.loads((CASES / "unseen.json").read_text())
    questions_of = {
        split: [
            Question(id=f"{n}", question=row["question"], answer=row["answer"], closed=False)
            for n, row in enumerate(rows)
            if row["split"] == split
        ]
        for split in ("train", "test")
    }
    train, test = questions_of["train"], questions_of["test"]
    how = writing("fixed", tuple(row["answer"] for row in rows))
    candidates = PROTOCOLS["clean"].candidates(train, [], "fixed").answers
    found = answers_in_reach(test, train, candidates, how, 10)
    assert candidates == ("foo",) and found["no_candidate"] == found["not_in_training"] == len(test) == 6
    assert any("6 of 6 questions" in line for line in remarks(found))
    low, high = accuracy([Answered(q, f"image {q.id}", "foo", False) for q in test]).interval or (0, 0)
    assert low == 0 and 35 < high < 45, "Wilson's interval of 0 of 6 is [0, 39]"
