"""The clean-up of answers, questions and captions is the official one, on every text of the fixture."""

import json
from pathlib import Path
from typing import Any

import pytest

from m2i2.data.text.cleaning import clean_answer, clean_caption, clean_question, scored_answer


@pytest.fixture(scope="module")
def texts(parity_folder: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((parity_folder / "text_normalisation.json").read_text())


def test_answers(texts: dict[str, list[dict[str, Any]]]) -> None:
    assert len(texts["answers"]) == 766
    for row in texts["answers"]:
        assert clean_answer(row["raw"]) == row["training_target"]
        assert scored_answer(row["raw"]) == row["scored_form"]


def test_questions(texts: dict[str, list[dict[str, Any]]]) -> None:
    assert len(texts["questions"]) == 3230
    for row in texts["questions"]:
        assert clean_question(row["raw"], 30) == row["train"]
        assert clean_question(row["raw"], 50) == row["test"]


def test_captions(texts: dict[str, list[dict[str, Any]]]) -> None:
    assert len(texts["captions"]) == 800
    for row in texts["captions"]:
        assert clean_caption(row["raw"], 30) == row["clean"]


def test_the_fixed_form_of_version_0_1_differs_only_where_the_official_ones_disagree(texts: dict[str, Any]) -> None:
    changed = [row for row in texts["answers"] if scored_answer(row["raw"], "fixed-0.1") != row["scored_form"]]
    assert all(clean_answer(r["raw"], "fixed-0.1") == scored_answer(r["raw"], "fixed-0.1") for r in texts["answers"])
    assert [r["raw"] for r in changed] == [r["raw"] for r in texts["answers"] if r["training_target"] != r["scored_form"]], (
        "9 answers with 'x ray'"
    )
    assert len(changed) == 9


def test_the_fixed_form_loses_nothing_of_a_real_answer(texts: dict[str, Any]) -> None:
    for raw in (row["raw"] for row in texts["answers"]):
        form = scored_answer(raw, "fixed")
        assert form == clean_answer(raw, "fixed") == scored_answer(form, "fixed")
        kept, there = ("".join(text.lower().split()).rstrip(".,;") for text in (form, raw))
        assert kept.replace("x-ray", "xray") == there.replace("x-ray", "xray"), raw
