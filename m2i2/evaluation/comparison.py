"""Two results side by side: McNemar's exact test, the interval of their difference, and what forbids the comparison."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2i2.errors import M2I2Error
from m2i2.evaluation.scoring import difference_interval
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


def compare(first: Path, second: Path) -> Comparison:
    """Compare two folders that evaluation wrote; M2I2Error where they have no question in common."""
    results = [read_object(_results_in(folder), "results") for folder in (first, second)]
    rows = [_predictions(folder) for folder in (first, second)]
    shared = [key for key in rows[0] if key in rows[1]]
    if not shared:
        raise M2I2Error(f"{first} and {second} have no question in common; compare results on the same test set.")
    right = [np.array([bool(mine[key]["correct"]) for key in shared]) for mine in rows]
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
        warnings=tuple(_warnings(results, [len(mine) - len(shared) for mine in rows])),
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


def _predictions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(image, question id) -> a line of predictions.jsonl."""
    path = folder / "predictions.jsonl"
    try:
        return {(str(row["image"]), str(row["id"])): row for row in read_rows(path)}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise M2I2Error(f"{path} cannot be read ({type(e).__name__}: {e}); name a folder that evaluate.py wrote.") from e


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


def _warnings(results: list[dict[str, Any]], left_out: list[int]) -> list[str]:
    found = []
    for name, read, why in _MUST_AGREE:
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
