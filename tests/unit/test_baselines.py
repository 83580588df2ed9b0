"""The logistic regression on the words of a question, which every result is shown beside."""

import json
import random
from pathlib import Path

import pytest

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.loading.subset import questions_of
from m2i2.data.records import Question
from m2i2.data.shards.split import ShardSplit
from m2i2.evaluation.baselines import BASELINES, question_only, question_words
from m2i2.evaluation.scoring import is_correct


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


def test_nothing_asked() -> None:
    assert question_words(TRAIN, []) == []


def test_chinese_has_no_spaces() -> None:
    train = [asked(f"图中有{what}{place}吗？", answer) for what, answer in (("肺", "有"), ("肝", "无")) for place in "上下"]
    assert question_words(train, [asked("有没有肺？"), asked("有没有肝？")]) == ["有", "无"]


@pytest.mark.parametrize(
    ("train", "answer"),
    [([], ""), ([asked("a", "yes")], "yes"), ([asked("a", "yes")] * 3, "yes"), ([asked(a, a) for a in "zxy"], "x")],
)
def test_fewer_than_two_answers(train: list[Question], answer: str) -> None:
    assert question_words(train, [asked("a"), asked("b")]) == [answer] * 2
    for baseline in BASELINES.values():
        assert len(baseline(train, [asked("a")], "fixed")) == 1
        assert baseline(train, [], "fixed") == []


def test_the_command_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, found = tmp_path / "vqa", tmp_path / "baselines.json"
    assert make_shards(["vqa", "phantoms", "--output", str(shards), "--count", "60", "--side", "64"]) == 0
    words = ["baselines", "--shards", str(shards), "--output", str(found)]
    assert evaluate([*words, "--protocol", "clean"]) == 0
    out = capsys.readouterr().out
    results = json.loads(found.read_text())
    view = results["views"]["test"]
    assert list(view) == list(BASELINES) and results["normalisation"] == "fixed"
    test = questions_of(ShardSplit.open(shards, "test", "vqa"))
    train = questions_of(ShardSplit.open(shards, "train", "vqa"))
    assert results["learned_from"] == len(train)
    for name, baseline in BASELINES.items():
        right = sum(is_correct(a, q.answer, "fixed") for a, q in zip(baseline(train, test, "fixed"), test, strict=True))
        assert view[name]["overall"]["correct"] == right and view[name]["overall"]["total"] == len(test)
        assert f"{view[name]['overall']['accuracy']:.1f} [" in out
    assert "this model" not in out
    assert evaluate([*words, "--split", "dev"]) == 2
    assert evaluate([*words, "--protocol", "strict"]) == 2
