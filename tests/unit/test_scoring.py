"""Scores of fixed predictions: exact match, F1, intervals over images, McNemar's test, consistency, and their comparison."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from m2i2.cli.compare import main as compare_command
from m2i2.data.records import Question
from m2i2.data.text.cleaning import clean_answer
from m2i2.errors import M2I2Error
from m2i2.evaluation.comparison import compare, mcnemar, read_result
from m2i2.evaluation.literature import differences_to_paper, literature, published, published_beside
from m2i2.evaluation.protocols import PROTOCOLS
from m2i2.evaluation.results import KINDS, show, summarise, write_results
from m2i2.evaluation.scoring import (
    Answered,
    accuracy,
    agreement,
    difference_interval,
    is_correct,
    paraphrase_consistency,
    resampled_means,
    token_f1,
)
from m2i2.inference.predictor import Prediction


def question(number: int, answer: str, closed: bool = False, **metadata: str) -> Question:
    return Question(id=str(number), question=f"what {number}", answer=answer, closed=closed, metadata=metadata)


def test_a_prediction_is_right_where_the_official_forms_agree(parity_folder: Path) -> None:
    rows = json.loads((parity_folder / "text_normalisation.json").read_text())["answers"]
    forms = [row["scored_form"] for row in rows]
    for row in rows:
        assert is_correct(row["raw"].upper(), row["raw"])
        assert [is_correct(row["raw"], other["raw"]) for other in rows[::25]] == [row["scored_form"] == f for f in forms[::25]]
        # what the model writes is the training target: where that is not the scored form, no answer can ever be right
        assert is_correct(row["training_target"], row["raw"], "fixed-0.1")
        assert is_correct(clean_answer(row["raw"], "fixed"), row["raw"], "fixed")


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        ("left lung", "the left lung", 1.0),
        ("left lung", "left upper lung", 0.8),
        ("no", "yes", 0.0),
        ("", "", 1.0),
        ("", "yes", 0.0),
        ("two two", "2", 2 / 3),
    ],
)
def test_token_f1(prediction: str, truth: str, f1: float) -> None:
    assert token_f1(prediction, truth) == pytest.approx(f1)


def test_intervals_are_those_of_images_not_of_questions() -> None:
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(100), 10)
    right = np.repeat(rng.random(100) < 0.5, 10)  # all questions of an image stand or fall together
    answers = [Answered(question(i, "a"), f"image {k}", "a", bool(r)) for i, (k, r) in enumerate(zip(images, right, strict=True))]
    low, high = accuracy(answers).interval or (0, 0)
    assert 2 * 1.96 * 5 * 0.8 < high - low < 2 * 1.96 * 5 * 1.2, "the deviation of 100 coins is 5 points, that of 1,000 1.6"
    assert np.array_equal(resampled_means([1, 0], ["a", "b"]), resampled_means([1, 0], ["a", "b"]))
    assert accuracy([]).to_json() == {"accuracy": None, "interval": None, "correct": 0, "total": 0}


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 10, 2 / 1024), (3, 9, 0.1460)])
def test_mcnemar(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p, abs=1e-4)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_paraphrases_pair_by_link_image_and_true_answer() -> None:
    def answered(number: int, kind: str, link: str, answer: str, prediction: str, key: str = "a") -> Answered:
        asked = question(number, answer, phrase_type=kind, linked_id=link)
        return Answered(asked, key, prediction, is_correct(prediction, answer))

    rows = [
        answered(0, "freeform", "x", "yes", "yes"),
        answered(1, "para", "x", "Yes", "yes"),
        answered(2, "freeform", "y", "liver", "spleen"),
        answered(3, "para", "y", "liver", "the spleen"),
        answered(4, "freeform", "z", "no", "no"),
        answered(5, "para", "z", "no", "yes"),
        answered(6, "freeform", "u", "no", "no"),
        answered(7, "para", "u", "yes", "no"),
        answered(8, "para", "x", "yes", "no", key="other image"),
    ]
    found = paraphrase_consistency(rows)
    assert found is not None
    low, high = found.pop("same_answer_interval")
    assert found == {"pairs": 3, "same_answer": 2, "same_answer_percent": 66.67, "both_right": 1, "one_right": 1}
    assert 0 < low < 66.67 < high <= 100
    assert paraphrase_consistency(rows[:1]) is None
    assert agreement([("yes", "Yes"), ("no", "yes")]) == {"same": 1, "total": 2, "percent": 50.0}
    assert agreement([]) is None


def given(right: list[bool]) -> list[Prediction]:
    made = []
    for number, yes in enumerate(right):
        closed = number % 2 == 0
        asked = question(number, "x ray", closed, phrase_type="freeform" if number % 3 else "para", organ="CHEST")
        made.append(Prediction(f"image{number // 2}", asked, (("x ray" if yes else "mri", 0.9),), "x ray"))
    return made


def results_of(folder: Path, right: list[bool], protocol: str = "paper", **changes: Any) -> dict[str, Any]:
    rows = given(right)
    rules = PROTOCOLS[protocol]
    train = [question(0, "mri", True, organ="HEAD"), question(2, "ct", False)]
    summary = summarise(rows, train, rules, rules.candidates(train, [g.question for g in rows]), "vqa-rad", "official")
    rest = {
        "shards": {"source": "vqa-rad", "fingerprint": "f"},
        "split": "test",
        "method": {"mode": "rank"},
        "trained": {"protocol": protocol},
    }
    results = {**summary, **rest, **changes}
    write_results(folder, results, rows, "official")
    return results


def test_a_fixed_prediction_file_scores_as_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(tmp_path, [True, True, False, True, False, False])
    view = results["views"]["freeform + paraphrased"]
    assert [view["model"][k]["correct"] for k in ("closed", "open", "overall")] == [1, 2, 3]
    assert view["exact_match_by_clean_up"] == {"official": 50.0, "fixed": 50.0}
    assert view["published"] == [], "six questions are not the published 451"
    assert view["question_only"]["overall"]["correct"] == 0
    assert view["by_organ"]["CHEST"]["total"] == 6 and "by_modality" not in view
    assert results["ranking_and_generation_agree"] == {"same": 3, "total": 6, "percent": 50.0}
    assert results["views"]["freeform"]["model"]["overall"]["total"] == 4
    assert results["candidates"]["count"] == 3
    assert results["rules"]["freeform"]["official"]["overall"] == {
        "score": results["views"]["freeform"]["model"]["overall"]["accuracy"],
        "interval": results["views"]["freeform"]["model"]["overall"]["interval"],
        "total": 4,
        "left_out": 0,
    }
    show(results)
    out = capsys.readouterr().out
    assert "published" not in out and "50.0 [" in out and "in the form official" in out


def test_nothing_published_is_named_under_synthetic_images() -> None:
    for source, named in (("slake", True), ("phantoms", False)):
        assert any("published" in habit for habit in PROTOCOLS["paper"].habits(source)) is named


def test_figures_stay_whole_on_80_columns(tmp_path: Path) -> None:
    """Also where all are right, and beside a published method with the longest name."""
    results = results_of(tmp_path, [True] * 40)
    best = {"accuracy": 100.0, "interval": [97.5, 100.0], "total": 1499}
    for view in results["views"].values():
        for who in ("model", "question_only", "most_frequent"):
            view[who] = dict.fromkeys(KINDS, best)
        view["published"] = [{"method": "M2I2 without pretraining", "closed": 80.1, "open": 60.2, "overall": 72.3}]
    out = io.StringIO()
    show(results, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for label in ("this model", "question only", "most frequent"):
        rows = [line for line in lines if line.strip().startswith(label)]
        assert [row.count("100.0 [97.5, 100.0]") for row in rows] == [3, 3], lines
    assert any("closed (1499)" in line and "open (1499)" in line and "overall (1499)" in line for line in lines)
    assert any(all(figure in line for figure in ("80.1", "60.2", "72.3")) for line in lines)


def lines_of(folder: Path) -> list[str]:
    return (folder / "predictions.jsonl").read_text().splitlines()


def test_two_results_are_compared_and_unlike_ones_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_of(tmp_path / "a", [False] * 12 + [True] * 8)
    results_of(tmp_path / "b", [True] * 10 + [False] * 2 + [True] * 6 + [False] * 2)
    found = compare(read_result(tmp_path / "a"), read_result(tmp_path / "b"))
    assert (found.questions, found.only_first, found.only_second) == (20, 2, 10)
    assert found.p == pytest.approx(mcnemar(2, 10))
    assert found.difference == pytest.approx(40)
    assert found.interval[0] < 40 < found.interval[1] and not found.warnings
    results_of(tmp_path / "c", [True] * 20, "clean")
    assert compare_command([str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    err = capsys.readouterr().err
    for what in ("protocol (paper and clean)", "candidates", "training protocol"):
        assert f"different {what}" in err
    assert "different data set" not in err
    theirs = [{"id": row["id"], "image": row["image"], "text": row["answer"]} for row in map(json.loads, lines_of(tmp_path / "a"))]
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, theirs)))
    assert compare_command([str(tmp_path / "theirs.jsonl"), str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert "20 questions: first 100.0 %, second 40.0 %" in said.out and "medevalkit" in said.out
    assert "does not say how its answers came about" in said.err and "different" not in said.err
    (tmp_path / "c" / "predictions.jsonl").write_text("{")
    with pytest.raises(M2I2Error, match="cannot be read"):
        read_result(tmp_path / "c")


TABLE = {"dataset": "vqa-rad", "view": "freeform + paraphrased", "split": "test", "language": "en", "questions": 451}


@pytest.mark.parametrize(
    ("protocol", "changes", "rows"),
    [
        ("paper", {}, 5),
        ("paper", {"view": "freeform", "questions": 308}, 12),
        ("paper", {"dataset": "slake", "view": "test", "questions": 1061}, 7),
        ("paper", {"dataset": "slake", "view": "test", "questions": 1033, "language": "zh"}, 0),
        ("paper", {"dataset": "phantoms", "view": "test"}, 0),
        ("paper", {"questions": 450}, 0),
        ("paper", {"split": "val"}, 0),
        ("paper, fixed", {}, 0),
        ("clean", {}, 0),
    ],
)
def test_published_rows_stand_beside_the_same_questions_only(protocol: str, changes: dict[str, Any], rows: int) -> None:
    assert len(published_beside(protocol, TABLE | changes)) == rows


@pytest.mark.parametrize(("split", "names"), [("val", ["val"]), ("test", ["freeform", "freeform + paraphrased"])])
def test_views_are_named_by_their_split(split: str, names: list[str]) -> None:
    source = "slake" if split == "val" else "vqa-rad"
    rows, rules = given([True, False] * 3), PROTOCOLS["paper"]
    found = summarise(
        rows, [question(0, "mri")], rules, rules.candidates([], [g.question for g in rows]), source, "official", split
    )
    assert list(found["views"]) == names
    assert [view.name for view in rules.views("vqa-rad", "selection")] == ["selection, freeform", "selection"]


@pytest.mark.parametrize("right", [0, 6])
def test_an_interval_of_six_questions_has_a_width(right: int) -> None:
    six = [Answered(question(i, "a"), f"image {i}", "a", i < right) for i in range(6)]
    low, high = accuracy(six).interval or (0, 0)
    assert (low, high) == pytest.approx((0, 39.03) if right == 0 else (60.97, 100), abs=0.01), "Wilson's of 0 or 6 of 6"
    one = accuracy([Answered(question(i, "a"), "the same image", "a", bool(right)) for i in range(6)])
    width = (one.interval or (0, 0))[1] - (one.interval or (0, 0))[0]
    assert width > high - low, "six questions about one image are one sample"
    low, high = difference_interval([0.0] * 6, list("abcdef"))
    assert low == pytest.approx(-high) and 0.1 < high < 0.5, "six pairs that never differ do not prove that none does"


def test_published_rows_come_with_their_protocol_only() -> None:
    assert [r["overall"] for r in published("vqa-rad", "freeform + paraphrased", "paper") if r["method"] == "M2I2"] == [76.8]
    assert published("vqa-rad", "freeform + paraphrased", "clean") == []
    assert published("phantoms", "test", "paper") == []
    assert "ISBI 2023" in literature()["source"] and len(literature()["rows"]) == 34
    differs = differences_to_paper({"vision": {"image_size": 96, "width": 768, "depth": 12}, "text": {"width": 768, "depth": 12}})
    assert "vision.image_size is 96 here, 384 there" in differs and not any("vision.width" in d for d in differs)
