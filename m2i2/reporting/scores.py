"""An evaluation's tables: scores beside the baselines, the certificate, calibration, other rules, and what was taken for what."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from m2i2.data.text.cleaning import same_spelling
from m2i2.evaluation.baselines import LABELS
from m2i2.evaluation.dependence import CONDITIONS, least
from m2i2.reporting.charts import reliability
from m2i2.reporting.records import Rows, question_type

KINDS = ("closed", "open", "overall")


def view_of(name: str, view: Mapping[str, Any]) -> dict[str, Any]:
    """A table of one view: a line for the model and each baseline, then what was published under the same protocol."""
    lines = [
        {"who": label, "cells": [_score(view[who].get(kind, {})) for kind in KINDS], "ours": who == "model"}
        for who, label in LABELS.items()
        if who in view
    ]
    published = view.get("published")
    for row in published if isinstance(published, list) else []:
        who = f"{row.get('model') or row.get('name') or row.get('method', '?')} (published)"
        cells = [_score({"accuracy": row.get(kind)}) for kind in KINDS]
        lines.append({"who": who, "cells": cells, "ours": False, "published": True})
    model = view.get("model", {})
    return {"name": name, "lines": lines, "totals": [model.get(kind, {}).get("total", "?") for kind in KINDS]}


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    """An accuracy with its interval, where one is stored."""
    interval = score.get("interval")
    return {
        "accuracy": score.get("accuracy"),
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
    }


def dependence_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate: for each kind of question a table of accuracy under each image, and by type what the image is worth."""
    if not found:
        return {}
    names = [name for name in CONDITIONS if name in found["overall"]]
    shown = {"right_image": "its own image", **{name: CONDITIONS[name] for name in names}}
    kinds = [
        {
            "name": kind,
            "questions": found[kind]["questions"],
            "lines": [{"who": who, "ours": name == "right_image", **found[kind][name]} for name, who in shown.items()],
        }
        for kind in reversed(KINDS)
        if kind in found
    ]
    types = [{"name": name, "part": part, "least": part[least(part)]} for name, part in found["by_question_type"].items()]
    return {"kinds": kinds, "types": types}


def localisation_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of tools/gradcam.py --slake: the lines of the mean over all layers."""
    return [line for line in found.get("summary", []) if isinstance(line, dict) and line.get("layer") == "all"]


def calibration_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A reliability diagram and its figures for each kind of question."""
    return [{**found[kind], "kind": kind, "svg": reliability(kind, found[kind]["bins"])} for kind in KINDS if kind in found]


def rules_of(view: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One view's answers by every rule in use: scores, and what each is worth against the first."""
    first = next(iter(found), "")
    lines = []
    for name, scores in found.items():
        cells = [{**_score({**scores[kind], "accuracy": scores[kind]["score"]}), **scores[kind]} for kind in KINDS]
        lines.append(
            {"name": name, "about": scores["about"], "source": scores["source"], "cells": cells, **scores[f"less_{first}"]}
        )
    return {"name": view, "first": first, "lines": lines}


def by_type(rows: Rows) -> list[dict[str, Any]]:
    """By kind of question: how many, how many right, and what was taken for what."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(question_type(row), []).append(row)
    found = []
    for name, mine in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        right = sum(bool(row.get("correct")) for row in mine)
        mistakes = _mistakes(mine)
        found.append(
            {
                "name": name,
                "total": len(mine),
                "right": right,
                "percent": 100 * right / len(mine),
                "mistakes": [(true, given, count) for (true, given), count in mistakes.most_common(3)],
            }
        )
    return found


def _mistakes(rows: Rows) -> Counter[tuple[str, str]]:
    """Pairs of a true and a wrong answer; spellings that differ by case and space are one pair, in its most frequent spelling."""
    spellings: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for row in rows:
        if not row.get("correct"):
            pair = str(row["answer"]), str(row["prediction"])
            spellings.setdefault((same_spelling(pair[0]), same_spelling(pair[1])), Counter())[pair] += 1
    return Counter({counts.most_common(1)[0][0]: counts.total() for counts in spellings.values()})


def yes_no_of(rows: Rows) -> dict[str, Any]:
    """How often yes and no were answered with yes, no and anything else; empty where no answer is either."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        true, given = (str(row.get(key, "")).strip().lower() for key in ("answer", "prediction"))
        if true in ("yes", "no"):
            counts[true, given if given in ("yes", "no") else "other"] += 1
    if not counts:
        return {}
    table = {true: [counts[true, given] for given in ("yes", "no", "other")] for true in ("yes", "no")}
    return {"table": table, "largest": max(counts.values())}
