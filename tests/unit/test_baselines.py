"""The logistic regression on the words of a question, which every result is shown beside."""

import random

import pytest

from m2i2.data.records import Question
from m2i2.evaluation.baselines import BASELINES, question_only, question_words


def asked(text: str, answer: str = "") -> Question:
    return Question(id=text, question=text, answer=answer, closed=answer in ("yes", "no"))


TRAIN = [
    *(
        asked(f"is there {finding} in the {place}?", "yes" if finding == "fluid" else "no")
        for finding in ("fluid", "air")
        for place in "abcd"
    ),
    *(asked(f"where is the {thing}?", place) for thing, place in zip("efgh", ("left", "left", "left", "right"), strict=True)),
    *(asked(f"which organ is {thing}?", "liver") for thing in "ij"),
]


def test_words_answer_questions_whose_beginning_says_nothing() -> None:
    test = [asked("is there any fluid?"), asked("is there any air?"), asked("where is it?"), asked("which organ?")]
    assert question_words(TRAIN, test) == ["yes", "no", "left", "liver"]
    assert len(set(question_only(TRAIN, test[:2]))) == 1, "the same two first words"


def test_answers_given_once_and_words_never_seen_do_not_count() -> None:
    assert question_words(TRAIN, [asked("where is the h?")]) == ["left"], "right was given once"
    often = [*TRAIN, *(asked(f"is there a {n}?", "no") for n in range(20))]
    assert question_words(often, [asked("zebra crossing")]) == ["no"], "the most frequent answer"


def test_the_order_of_training_does_not_matter() -> None:
    test = [asked(f"is there {word}?") for word in ("fluid", "air", "a", "b", "organ", "left")]
    shuffled = random.Random(0).sample(TRAIN, len(TRAIN))
    assert question_words(shuffled, test) == question_words(TRAIN, test)


@pytest.mark.parametrize(("train", "answer"), [([], ""), ([asked("a", "yes")], ""), ([asked("a", "yes")] * 3, "yes")])
def test_fewer_than_two_answers(train: list[Question], answer: str) -> None:
    assert question_words(train, [asked("a"), asked("b")]) == [answer] * 2
    for baseline in BASELINES.values():
        assert len(baseline(train, [asked("a")], "fixed")) == 1
        assert baseline(train, [], "fixed") == []
