"""What an evaluation leaves behind: results.json, predictions.jsonl, and a table beside the baselines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from m2i2.data.records import Question
from m2i2.data.text import Normalisation
from m2i2.evaluation.baselines import most_frequent, question_only
from m2i2.evaluation.evaluator import Given
from m2i2.evaluation.protocols import Candidates, Protocol
from m2i2.evaluation.scoring import Answered, by_kind, by_type, is_correct
from m2i2.files import write_text


def summarise(
    given: Sequence[Given],
    train: Sequence[Question],
    protocol: Protocol,
    candidates: Candidates,
    source: str,
    normalisation: Normalisation,
) -> dict[str, Any]:
    """Accuracy of every view, with both baselines on the same questions, and what a reader must know of them."""
    questions = [g.question for g in given]
    answers = {
        "model": [g.best[0][0] for g in given],
        "question_only": question_only(train, questions, normalisation),
        "most_frequent": most_frequent(train, questions, normalisation),
    }
    answered = {
        who: [
            Answered(g.question, g.key, prediction, is_correct(prediction, g.question.answer, normalisation))
            for g, prediction in zip(given, predictions, strict=True)
        ]
        for who, predictions in answers.items()
    }
    views = {}
    for view in protocol.views(source):
        rows = {who: [a for a in everyone if view.contains(a.question)] for who, everyone in answered.items()}
        views[view.name] = {
            who: {kind: accuracy.to_json() for kind, accuracy in by_kind(mine).items()} for who, mine in rows.items()
        }
        views[view.name]["by_question_type"] = {name: accuracy.to_json() for name, accuracy in by_type(rows["model"]).items()}
    return {
        "protocol": {"name": protocol.name, "habits": list(protocol.habits(source))},
        "candidates": candidates.provenance,
        "training_questions": len(train),
        "normalisation": normalisation,
        "views": views,
    }


def write_results(folder: Path, results: dict[str, Any], given: Sequence[Given], normalisation: Normalisation) -> None:
    """Both files, each in place at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": g.question.id,
            "image": g.key,
            "question": g.question.question,
            "answer": g.question.answer,
            "prediction": g.best[0][0],
            "correct": is_correct(g.best[0][0], g.question.answer, normalisation),
            "closed": g.question.closed,
            "best": [[answer, round(probability, 6)] for answer, probability in g.best],
            "metadata": dict(g.question.metadata),
        }
        for g in given
    ]
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")


_NAMES = {"model": "this model", "question_only": "question only (no image)", "most_frequent": "most frequent answer"}


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """The table, a row for the model and each baseline, per view."""
    console = console or Console()
    for name, view in results["views"].items():
        total = view["model"]["overall"]["total"]
        table = Table(title=f"{name} ({total} questions, protocol {results['protocol']['name']})", title_justify="left")
        table.add_column("accuracy, %")
        for kind in ("closed", "open", "overall"):
            table.add_column(f"{kind} ({view['model'][kind]['total']})", justify="right")
        for who, label in _NAMES.items():
            cells = [view[who][kind]["accuracy"] for kind in ("closed", "open", "overall")]
            table.add_row(label, *("-" if c is None else f"{c:.1f}" for c in cells))
        console.print(table)
