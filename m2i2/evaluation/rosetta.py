"""One system's answers scored by every rule in use: what each rule is worth in points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2i2.data.records import Question
from m2i2.data.sources.reading import yes_or_no
from m2i2.errors import plain
from m2i2.evaluation.rules import RULES, Rule
from m2i2.evaluation.scoring import difference_interval, share_interval

KINDS = ("closed", "open", "overall")
Rows = Sequence[tuple[str, Question, str]]
"""Image, question and the answer given to it."""


def scored_by_every_rule(rows: Rows, source: str) -> dict[str, Any]:
    """For results.json: by rule, the mean score of closed, open and all questions, and all of them less those by `RULES`' first.

    ``source``: the data set, because MedEvalKit takes closed questions from SLAKE's own marks. Percent and points, with 95 %
    intervals over images.
    """
    found: dict[str, Any] = {}
    images = [image for image, _, _ in rows]
    first: list[float | None] = []
    for rule in RULES:
        closed = [_closed(rule, question, source) for _, question, _ in rows]
        scores = [rule.score(answer, question.answer, c) for (_, question, answer), c in zip(rows, closed, strict=True)]
        first = first or scores
        found[rule.name] = {
            "closed": _mean(scores, images, closed),
            "open": _mean(scores, images, [not c for c in closed]),
            "overall": _mean(scores, images, [True] * len(rows)),
            f"less_{RULES[0].name}": _less(scores, first, images),
            "about": rule.about,
            "source": rule.source,
        }
    return found


def _closed(rule: Rule, question: Question, source: str) -> bool:
    return yes_or_no(question.answer) if rule.closed_by == "answer" and source != "slake" else question.closed


def _mean(scores: Sequence[float | None], images: Sequence[str], asked: Sequence[bool]) -> dict[str, Any]:
    """Of the questions ``asked`` for: the mean of what the rule counts, and how many questions it leaves out."""
    total = sum(asked)
    counted = [(s, image) for s, image, yes in zip(scores, images, asked, strict=True) if yes and s is not None]
    result: dict[str, Any] = {"score": None, "interval": None, "total": total, "left_out": total - len(counted)}
    if counted:
        values = [score for score, _ in counted]
        low, high = share_interval(values, [image for _, image in counted])
        result |= {"score": round(100 * float(np.mean(values)), 2), "interval": [round(100 * low, 2), round(100 * high, 2)]}
    return result


def _less(scores: Sequence[float | None], first: Sequence[float | None], images: Sequence[str]) -> dict[str, Any]:
    """The mean less the first rule's; with an interval where both count the same questions."""
    counted = [score for score in scores if score is not None]
    if not counted:
        return {"points": None, "interval": None}
    points = float(np.mean(counted)) - float(np.mean([score for score in first if score is not None]))
    interval = None
    if len(counted) == len(scores):
        change = [(score or 0.0) - (other or 0.0) for score, other in zip(scores, first, strict=True)]
        interval = [round(100 * end, 2) for end in difference_interval(change, images)]
    return {"points": round(100 * points, 2), "interval": interval}


def show_rules(title: str, systems: dict[str, dict[str, Any]], console: Console | None = None) -> None:
    """A table of every rule, for each system its closed, open and overall score and what the rule is worth."""
    table = Table(title=Text(plain(title)), title_justify="left")
    table.add_column("rule")
    for name in systems:
        for kind in KINDS:
            table.add_column(Text(plain(f"{name}: {kind}" if len(systems) > 1 else kind)), justify="right")
        table.add_column(f"less {RULES[0].name}", justify="right")
    for rule in RULES:
        cells = []
        for found in systems.values():
            cells += [score_cell(found[rule.name][kind]) for kind in KINDS]
            points = found[rule.name][f"less_{RULES[0].name}"]["points"]
            cells.append("-" if points is None else f"{points:+.1f}")
        table.add_row(rule.name, *cells)
    (console or Console()).print(table)


def score_cell(score: Mapping[str, Any]) -> str:
    """A rule's score as a cell of a table, with how many questions it counts: 61.5 (1061), or 70.2 (645, 3 left out)."""
    if score["score"] is None:
        return "-"
    out = f", {score['left_out']} left out" if score["left_out"] else ""
    return f"{score['score']:.1f} ({score['total']}{out})"
