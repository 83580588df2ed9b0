"""The protocol clean keeps test images out of selection, rewrites out of training, and test answers out of the candidates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.loading.clean import CleanParts, clean_parts, refuse_test_images
from m2i2.data.loading.subset import questions_of
from m2i2.data.shards.split import ImageQuestion, ShardSplit
from m2i2.data.text.cleaning import candidate_answers
from m2i2.errors import M2I2Error
from m2i2.evaluation.protocols import PROTOCOLS, Candidates

IMAGES = 12
"""Of the training set; the last four are test images too."""


def record(qid: int, image: int, question: str, answer: str, phrase_type: str = "freeform") -> dict[str, Any]:
    return {
        "qid": qid,
        "image_name": f"i{image}.png",
        "image_organ": "CHEST",
        "answer": answer,
        "answer_type": "OPEN",
        "question_type": "ABN",
        "question": question,
        "phrase_type": phrase_type,
    }


def vqa_rad(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Path:
    """Shards of a small data set in the layout of MEVF and M2I2."""
    (folder / "images").mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("RGB", (32, 32), (number * 20, 255 - number * 20, 40)).save(folder / "images" / f"i{number}.png")
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}set.json").write_text(json.dumps(rows))
    assert make_shards(["vqa", "vqa-rad", str(folder), "--output", str(folder / "s"), "--side", "32", "--workers", "1"]) == 0
    return folder / "s"


TRAIN = [record(100 + i, i % IMAGES, f"what is it number {i}", f"answer {i % 5}") for i in range(48)]
TEST = [record(10 * i, 8 + i % 4, f"where is number {i}", f"secret {i}") for i in range(6)]
FRAMED = [record(10 * i + 1, 8 + i % 4, f"where is/are number {i}", f"secret {i}", "frame") for i in range(6)]
REPEAT = record(900, 8, "Where is/are number 0", "answer 1")
INNOCENT = record(148, 11, "framed from a training question", "answer 2", "frame")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqa_rad(tmp_path_factory.mktemp("rad"), [*TRAIN, *FRAMED, REPEAT, INNOCENT], TEST)


def test_rewrites_and_their_repeats_are_not_trained_on(shards: Path) -> None:
    parts = clean_parts(shards, 0)
    assert parts.counts["rewrites_of_test_questions"] == 6
    assert parts.counts["repeats_of_such_rewrites"] == 1
    assert len(parts.train) == len(parts.known) == 49
    asked = [q.question.question for q in parts.train.questions()]
    assert INNOCENT["question"] in asked and not any(f["question"] in asked for f in FRAMED)
    assert len(clean_parts(shards, 0, with_rewrites=True).train) == 56


def contents(parts: CleanParts) -> tuple[list[str], list[str]]:
    return [q.question.id for q in parts.train.questions()], [q.question.id for q in parts.selection.questions()]


def test_selection_is_disjoint_by_image_from_training_and_test_and_always_the_same(shards: Path) -> None:
    parts = clean_parts(shards, 0.15)
    images = {
        name: {q.image_sha256 for q in split.questions()}
        for name, split in (
            ("train", parts.train),
            ("selection", parts.selection),
            ("test", ShardSplit.open(shards, "test", "vqa")),
        )
    }
    assert 0.15 * 49 <= len(parts.selection) < 0.15 * 49 + 4
    assert not images["selection"] & (images["train"] | images["test"])
    assert images["test"] <= images["train"], "as in VQA-RAD"
    assert contents(parts) == contents(clean_parts(shards, 0.15))
    assert len(parts.train) + len(parts.selection) == 49
    read = parts.selection.read(len(parts.selection) - 1)
    assert read.question == list(parts.selection.questions())[-1].question


def test_a_test_image_smuggled_into_selection_is_refused(shards: Path) -> None:
    selection = list(clean_parts(shards, 0.15).selection.questions())
    test = list(ShardSplit.open(shards, "test", "vqa").questions())
    refuse_test_images(selection, test, "the data")
    smuggled = ImageQuestion(99, "renamed", test[0].image_sha256, selection[0].question)
    with pytest.raises(M2I2Error, match="1 questions that would choose the best checkpoint"):
        refuse_test_images([*selection, smuggled], test, "the data")


def test_a_val_split_that_shares_images_with_test_selects_without_them(tmp_path: Path) -> None:
    rows = {
        "train": [("xmlab0", 1), ("xmlab1", 2)],
        "validate": [("xmlab2", 3), ("xmlab3", 4), ("xmlab0", 5)],
        "test": [("xmlab3", 6)],
    }
    for number in range(4):
        folder = tmp_path / "imgs" / f"xmlab{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (number * 60, 10, 90)).save(folder / "source.jpg")
    for name, entries in rows.items():
        made = [
            {
                "img_name": f"{image}/source.jpg",
                "qid": qid,
                "question": "q?",
                "answer": "a",
                "answer_type": "OPEN",
                "q_lang": "en",
            }
            for image, qid in entries
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    assert make_shards(["vqa", "slake", str(tmp_path), "--output", str(tmp_path / "s"), "--workers", "1"]) == 0
    parts = clean_parts(tmp_path / "s", 0.1)
    assert contents(parts) == (["1", "2"], ["3"])
    assert "less 2 questions" in parts.counts["selection"]


def test_a_test_answer_smuggled_into_the_candidates_is_refused(shards: Path) -> None:
    known = questions_of(clean_parts(shards, 0).known)
    test = questions_of(ShardSplit.open(shards, "test", "vqa"))
    clean = PROTOCOLS["clean"]
    assert set(clean.candidates(known, test).answers) == {f"answer {i}" for i in range(5)}
    assert "secret 0" in PROTOCOLS["paper"].candidates(known, test).answers

    def smuggling(train: Any, given_test: Any, normalisation: Any) -> Candidates:
        assert not given_test, "a blind protocol is not given the test questions"
        return Candidates(candidate_answers(q.answer for q in (*train, *test)), "said to be training answers")

    with pytest.raises(M2I2Error, match="holds 6 answers that no training question has, the first 'secret 0'"):
        replace(clean, make_candidates=smuggling).candidates(known, test)


def test_framed_questions_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    stray = record(5000, 3, "is/are it framed", "answer 1", "frame")
    shards = vqa_rad(tmp_path, [*TRAIN, stray], TEST)
    with pytest.raises(M2I2Error, match=r"1 framed questions of .*, the first of them 5000, do not say"):
        clean_parts(shards, 0)


def test_captions_of_training_questions_hold_nothing_of_test_or_selection(shards: Path, tmp_path: Path) -> None:
    words = ["captions", "vqa-text", str(shards), "--output", str(tmp_path / "t"), "--workers", "1", "--keep-bytes"]
    assert make_shards([*words, "--selection", "0.15"]) == 0
    split = ShardSplit.open(tmp_path / "t", "train", "captions")
    texts = " ".join(split.texts())
    assert "what is it number" in texts and "secret" not in texts
    selection = clean_parts(shards, 0.15).selection
    samples = [split.read(item) for item in range(len(split))]
    assert not {s.image_sha256 for s in samples} & {q.image_sha256 for q in selection.questions()}
    assert all(len(caption.split()) <= 30 for s in samples for caption in s.captions)
    for q in selection.questions():
        assert f"{q.question.question} " not in texts
