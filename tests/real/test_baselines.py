"""The question-only baseline of VQA-RAD is the published 39.0 %, and 36.8 % without the rewrites of test questions."""

from pathlib import Path

import pytest

from m2i2.data.records import Question
from m2i2.data.sources import open_source
from m2i2.evaluation.baselines import most_frequent, question_only
from m2i2.evaluation.protocols import PROTOCOLS
from m2i2.evaluation.scoring import is_correct


def questions(folder: Path, split: str) -> list[Question]:
    return [q for r in open_source("vqa", "vqa-rad", folder) if r.split == split for q in r.questions]


def percent(predictions: list[str], test: list[Question]) -> float:
    return 100 * sum(is_correct(p, q.answer) for p, q in zip(predictions, test, strict=True)) / len(test)


@pytest.mark.parametrize("folder", ["vqa_rad", "data_RAD"])
def test_question_only(shared_data: Path, folder: str) -> None:
    train, test = (questions(shared_data / folder, split) for split in ("train", "test"))
    assert percent(question_only(train, test), test) == pytest.approx(39.0, abs=0.3)
    assert percent(most_frequent(train, test), test) < 39
    assert PROTOCOLS["paper"].candidates(train, test).provenance["count"] == 517
    views = PROTOCOLS["paper"].views("vqa-rad")
    assert [(v.name, sum(map(v.contains, test))) for v in views] == [("freeform", 308), ("freeform + paraphrased", 451)]
