"""Two results side by side: McNemar's exact test, the interval of their difference, and what forbids the comparison.

A result is a folder that evaluate.py wrote, or a file of any system's answers (`m2i2.evaluation.imported`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2i2.data.records import Question
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.text.cleaning import Normalisation
from m2i2.errors import M2I2Error
from m2i2.evaluation.imported import Key, read_answers
from m2i2.evaluation.scoring import difference_interval, is_correct
from m2i2.files import read_object, read_rows


@dataclass(frozen=True)
class Comparison:
    """The second result against the first, over the questions that both answered."""

    questions: int
    accuracies: tuple[float, float]
    """Percent."""
    only_first: int
    only_second: int
    p: float
    """McNemar's exact test, two-sided: how probable a split as uneven as this is if neither is better."""
    difference: float
    interval: tuple[float, float]
    """Of the difference in points, 95 %, bootstrap over images."""
    warnings: tuple[str, ...]


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: the smaller count among the disagreeing ones, under a fair coin."""
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


@dataclass(frozen=True)
class Result:
    """The answers of a system to some questions."""

    place: Path
    rows: dict[Key, tuple[Question, str]]
    """Question and answer, by image and question id."""
    correct: dict[Key, bool]
    source: str
    """The data set."""
    results: dict[str, Any] | None = None
    """results.json; None for a file of answers, which says nothing of how they came about."""
    warnings: tuple[str, ...] = ()


def read_result(folder: Path) -> Result:
    """A folder that evaluate.py wrote; M2I2Error where it is none."""
    results, path = read_object(_results_in(folder), "results"), folder / "predictions.jsonl"
    rows, correct = {}, {}
    try:
        for row in read_rows(path):
            key = str(row["image"]), str(row["id"])
            names = ("question", "answer", "closed", "metadata")
            rows[key] = Question(id=key[1], **{name: row[name] for name in names}), str(row["prediction"])
            correct[key] = bool(row["correct"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise M2I2Error(f"{path} cannot be read ({type(e).__name__}: {e}); name a folder that evaluate.py wrote.") from e
    shards = results.get("shards")
    return Result(folder, rows, correct, str(shards.get("source", "")) if isinstance(shards, dict) else "", results)


def asked_of_shards(shards: Path, split: str) -> tuple[dict[Key, Question], str]:
    """The questions of a split of question shards by image and id, and the data set's name."""
    part = ShardSplit.open(shards, split, "vqa")
    return {(asked.key, asked.question.id): asked.question for asked in part.questions()}, str(read_index(part.storage)["source"])


def imported_result(path: Path, asked: Mapping[Key, Question], source: str, form: Normalisation) -> Result:
    """The answers of a file to questions that are at hand, right where they are so in ``form``."""
    found = read_answers(path, asked)
    warnings = [f"{path} does not say how its answers came about: by which training questions, candidates and method."]
    if found.unanswered:
        warnings.append(f"{found.unanswered} of {len(asked)} questions have no answer in {path} and count as wrong.")
    if found.others:
        warnings.append(f"{found.others} lines of {path} are about other questions and are left out.")
    return Result(
        path,
        {key: (asked[key], answer) for key, answer in found.answers.items()},
        {key: is_correct(answer, asked[key].answer, form) for key, answer in found.answers.items()},
        source,
        warnings=tuple(warnings),
    )


def read_both(first: Path, second: Path) -> tuple[Result, Result]:
    """Two results, of which one may be a file of answers to the other's questions."""
    files = [path.is_file() and path.name != "results.json" for path in (first, second)]
    if all(files):
        raise M2I2Error(f"{first} and {second} hold answers and no questions; name a folder of evaluate.py or shards first.")
    if not any(files):
        return read_result(first), read_result(second)
    ours = read_result(second if files[0] else first)
    assert ours.results is not None
    asked = {key: question for key, (question, _) in ours.rows.items()}
    theirs = imported_result(first if files[0] else second, asked, ours.source, ours.results.get("normalisation", "official"))
    return (theirs, ours) if files[0] else (ours, theirs)


def compare(first: Result, second: Result) -> Comparison:
    """Compare two results; M2I2Error where they have no question in common."""
    shared = [key for key in first.rows if key in second.rows]
    if not shared:
        raise M2I2Error(f"{first.place} and {second.place} have no question in common; compare results on the same test set.")
    right = [np.array([mine.correct[key] for key in shared]) for mine in (first, second)]
    only = [int((right[i] & ~right[1 - i]).sum()) for i in (0, 1)]
    change = right[1].astype(float) - right[0].astype(float)
    low, high = difference_interval(change.tolist(), [image for image, _ in shared])
    return Comparison(
        questions=len(shared),
        accuracies=(100 * float(right[0].mean()), 100 * float(right[1].mean())),
        only_first=only[0],
        only_second=only[1],
        p=mcnemar(*only),
        difference=100 * float(change.mean()),
        interval=(100 * low, 100 * high),
        warnings=tuple(_warnings(first, second, [len(mine.rows) - len(shared) for mine in (first, second)])),
    )


def _results_in(folder: Path) -> Path:
    """results.json of an evaluation's folder; M2I2Error that says where it is instead."""
    path = folder / "results.json"
    if path.exists():
        return path
    if folder.is_file():
        raise M2I2Error(
            f"{folder} is a file; name the folder that holds results.json and predictions.jsonl, such as {folder.parent}."
        )
    inner = sorted(str(found.parent) for found in folder.glob("*/results.json"))
    where = (
        f"The evaluations are one folder below: name {' or '.join(inner[:8])}."
        if inner
        else "Name a folder that evaluate.py wrote."
    )
    raise M2I2Error(f"{folder} has no results.json. {where}")


_MUST_AGREE = (
    ("protocol", lambda r: r["protocol"]["name"], "they follow different rules; a difference may come from the rules alone"),
    ("normalisation", lambda r: r["normalisation"], "answers are cleaned differently"),
    ("data set", lambda r: r["shards"]["source"], "they answer questions of different data"),
    ("shards", lambda r: r["shards"]["fingerprint"], "the images or questions are not the same bytes"),
    ("split", lambda r: r["split"], "they answer different questions"),
    ("candidates", lambda r: r["candidates"]["sha256"], "they choose from different answers"),
    ("method", lambda r: r["method"]["mode"], "answers are found in different ways"),
    ("training protocol", lambda r: r["trained"]["protocol"], "they were trained under different rules"),
)


def _warnings(first: Result, second: Result, left_out: list[int]) -> list[str]:
    found = [*first.warnings, *second.warnings]
    results = [result.results for result in (first, second) if result.results is not None]
    for name, read, why in _MUST_AGREE if len(results) == 2 else ():
        values = []
        for result in results:
            try:
                values.append(str(read(result)))
            except (KeyError, TypeError):
                values.append("not recorded")
        if values[0] != values[1]:
            shown = [value if len(value) <= 40 else value[:12] + "..." for value in values]
            found.append(f"different {name} ({shown[0]} and {shown[1]}): {why}.")
    if any(left_out):
        found.append(f"{left_out[0]} questions of the first and {left_out[1]} of the second have no partner and are left out.")
    return found
