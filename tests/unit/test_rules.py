"""Every rule in use on answers worked out by hand, what each is worth, and the answers of other systems read from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.compare import main as compare
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.records import Question
from m2i2.data.shards.split import ShardSplit
from m2i2.errors import M2I2Error
from m2i2.evaluation.imported import read_answers
from m2i2.evaluation.rosetta import scored_by_every_rule
from m2i2.evaluation.rules import RULES, extracted
from m2i2.evaluation.scoring import difference_interval

SCORES = {rule.name: rule.score for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "prediction", "answer", "closed", "score"),
    [
        ("official", "the left lung", "Left lung", False, 1.0),
        ("official", "two", "2", False, 1.0),
        ("official", "ER-", "ER+", False, 1.0),
        ("clean", "ER-", "ER+", False, 0.0),
        ("clean", "two", "2", False, 0.0),
        ("clean", "X-Ray.", "x ray", False, 1.0),
        ("medevalkit", "Yes.", "yes", True, 1.0),
        ("medevalkit", "yes and no", "yes", True, 0.0),
        ("medevalkit", "unknown", "no", True, 1.0),
        ("medevalkit", "I think so", "yes", True, 0.0),
        ("medevalkit", "left.", "left", True, 1.0),
        ("medevalkit", "left.", "left", False, 0.0),
        ("medevalkit", "the left lung", "left lung", False, 0.0),
        ("medevalkit", "The answer is: final answer <answer>Axial</answer>", "axial", False, 1.0),
        ("lmms-eval", "Yeah!", "yes", True, 1.0),
        ("lmms-eval", "MRI (T2)", "mri", False, 1.0),
        ("lmms-eval", "left-lung", "left lung", False, 1.0),
        ("lmms-eval", "X-ray", "XRay", False, 1.0),
        ("lmms-eval", "没有", "否", True, 1.0),
        ("lmms-eval", "the left lung", "left lung", False, 0.0),
        ("llava-med", "right upper lobe of the lung", "right lung lesion", False, 2 / 3),
        ("llava-med", "lung lung", "right lung", False, 2 / 3),
        ("llava-med", "", "right lung", False, 0.0),
        ("llava-med", "yes, it is", "Yes", True, 1.0),
        ("llava-med", "no", "yes", True, None),
        ("llava-med", "left", "left", True, 0.0),
        ("llava-med, all counted", "no", "yes", True, 0.0),
        ("bleu-1", "right lung", "right lower lung", False, 0.60653066),
        ("bleu-1", "the right lung", "right lung", False, 2 / 3),
        ("bleu-1", "heart", "lung", False, 0.0),
        ("token f1", "the left upper lung", "left lung", False, 0.8),
        ("rouge-l", "lung right lower", "right lower lung", False, 2 / 3),
        ("rouge-l", "", "lung", False, 0.0),
        ("rouge-l", "lung", "Lung", False, 1.0),
    ],
)
def test_a_rule_scores_as_by_hand(rule: str, prediction: str, answer: str, closed: bool, score: float | None) -> None:
    assert SCORES[rule](prediction, answer, closed) == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize("name", SCORES)
def test_the_true_answer_is_right_by_every_rule(name: str) -> None:
    for answer in ("yes", "No", "left lung", "x-ray", "2", "ER+", "卷积"):
        assert SCORES[name](answer, answer, False) == 1.0
        if not name.startswith("llava-med") or answer in ("yes", "No"):  # it knows closed questions of yes and no only
            assert SCORES[name](answer, answer, True) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{\\text{left lung}}", "\\text{left lung}"),
        ("It is <answer> Yes </answer>.", "yes"),
        ("Reasoning. **Answer**: CT", "ct"),
        ("The final answer is axial", "axial"),
        ("axial plane", "axial plane"),
        ("\\boxed{open", "open"),
    ],
)
def test_an_answer_is_found_in_a_longer_text(text: str, answer: str) -> None:
    assert extracted(text) == answer


def rows(*answers: tuple[str, str, bool]) -> list[tuple[str, Question, str]]:
    """(prediction, true answer, closed) of questions about images of their own."""
    return [
        (f"image {i}", Question(id=str(i), question="?", answer=true, closed=closed), given)
        for i, (given, true, closed) in enumerate(answers)
    ]


def test_what_a_rule_is_worth_is_its_mean_less_the_official_one() -> None:
    asked = rows(("no", "yes", True), ("yes", "yes", True), ("left.", "left", True), ("right lung", "lung", False))
    found = scored_by_every_rule(asked, "vqa-rad")
    assert list(found) == [rule.name for rule in RULES]
    assert found["official"]["overall"]["score"] == 50.0 and found["official"]["less_official"]["points"] == 0
    low, high = difference_interval([0, 0, 0, 1], list("abcd"))
    assert found["llava-med, all counted"]["less_official"]["points"] == 0.0, "recall gives one, 'left' of no yes or no takes one"
    assert found["token f1"]["less_official"] == {"points": 16.67, "interval": found["token f1"]["less_official"]["interval"]}
    assert low < 0.1667 < high
    left_out = found["llava-med"]
    assert left_out["closed"] == {"score": 50.0, "interval": left_out["closed"]["interval"], "total": 3, "left_out": 1}
    assert left_out["less_official"] == {"points": 16.67, "interval": None}
    assert [found["medevalkit"][kind]["total"] for kind in ("closed", "open")] == [2, 2], "closed is what yes or no answers"
    assert [scored_by_every_rule(asked, "slake")["medevalkit"][k]["total"] for k in ("closed", "open")] == [3, 1]
    assert scored_by_every_rule(asked[3:], "vqa-rad")["official"]["closed"]["score"] is None


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules") / "vqa"
    assert make_shards(["vqa", "phantoms", "--output", str(folder), "--count", "10", "--side", "32", "--workers", "1"]) == 0
    return folder


def lines(shards: Path, names: tuple[str, str] = ("id", "prediction")) -> list[dict[str, Any]]:
    """The true answers of the test questions, as another system would write them."""
    asked = ShardSplit.open(shards, "test", "vqa").questions()
    return [{names[0]: a.question.id, names[1]: a.question.answer.upper()} for a in asked]


def written(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in content))
    return path


def test_another_systems_answers_are_scored_by_every_rule(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = written(tmp_path / "theirs.jsonl", lines(shards, ("question_id", "text"))[1:])
    output = tmp_path / "rules.json"
    assert compare([str(shards), str(theirs), "--output", str(output)]) == 0
    said = capsys.readouterr()
    (found,) = json.loads(output.read_text()).values()
    total = len(lines(shards))
    for name in ("official", "clean", "lmms-eval"):
        assert found[name]["overall"]["score"] == pytest.approx(100 * (total - 1) / total, abs=0.01), name
    assert f"1 of {total} questions have no answer in" in said.err and "does not say how its answers came about" in said.err
    assert "llava-med" in said.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "0-0", "prediction": "yes"}\nyes\n', "line 2 is not valid JSON"),
        ("[1]\n", "line 1 is [1], no object"),
        ('{"prediction": "yes"}\n', "line 1 has none of the fields id, question_id, qid; it has 'prediction'. Add 'id'"),
        ('{"id": "0-0"}\n', "line 1 has none of the fields prediction, response, text, answer"),
        ('{"id": "0-0", "prediction": ["yes"]}\n', "line 1: 'prediction' is ['yes']; write it as one text"),
        (
            '\n{"id": "0-0", "text": "a"}\n{"id": "0-0", "text": "b"}\n',
            "line 3: the question '0-0' is answered again, first in line 2",
        ),
        ('{"id": "x", "text": "a"}\n', "none of its 1 lines is about these"),
        ("", "none of its 0 lines is about these"),
    ],
)
def test_errors_name_file_line_and_remedy(
    shards: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.jsonl").write_text(content)
    assert compare([str(shards), str(tmp_path / "theirs.jsonl")]) == 2
    said = capsys.readouterr().err
    assert message in said and "theirs.jsonl" in said and "Traceback" not in said


def test_an_image_tells_apart_questions_of_one_id(tmp_path: Path) -> None:
    asked = {(image, "1"): Question(id="1", question="?", answer="yes", closed=True) for image in ("a", "b")}
    path = written(tmp_path / "x.jsonl", [{"id": 1, "text": "no"}])
    with pytest.raises(M2I2Error, match=r'line 1: 2 questions have the id .1.; add "image"'):
        read_answers(path, asked)
    found = read_answers(written(path, [{"id": 1, "image": "b", "text": "no"}, {"id": 2, "text": "no"}]), asked)
    assert found.answers == {("a", "1"): "", ("b", "1"): "no"} and (found.unanswered, found.others) == (1, 1)


def test_two_files_of_answers_have_no_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / name).write_text("{}")
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "hold answers and no questions" in capsys.readouterr().err
