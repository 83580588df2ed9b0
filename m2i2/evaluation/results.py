"""What an evaluation leaves behind: results.json, predictions.jsonl, and a table beside baselines and the literature."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation
from m2i2.errors import plain
from m2i2.evaluation.baselines import BASELINES
from m2i2.evaluation.literature import published_beside
from m2i2.evaluation.protocols import Candidates, Protocol
from m2i2.evaluation.rosetta import scored_by_every_rule
from m2i2.evaluation.scoring import Answered, agreement, by_field, by_kind, is_correct, mean_f1, paraphrase_consistency
from m2i2.files import write_json, write_text
from m2i2.inference.predictor import Prediction

_FIELDS = {"by_question_type": "question_type", "by_modality": "modality", "by_organ": "organ"}


def summarise(
    given: Sequence[Prediction],
    train: Sequence[Question],
    protocol: Protocol,
    candidates: Candidates,
    source: str,
    normalisation: Normalisation,
    split: str = "test",
) -> dict[str, Any]:
    """Scores of every view, with the baselines on the same questions, and what a reader must know of them.

    ``train``: the training questions that the protocol allows; the baselines know their answers and nothing else.
    ``source`` and ``split``: the data set and the part of it that was asked.
    """
    questions = [g.question for g in given]
    asked = [(g.key, g.question) for g in given]
    answered = {"model": _scored(asked, [g.best[0][0] for g in given], normalisation), **blind(asked, train, normalisation)}
    views, by_rule = {}, {}
    rules = protocol.name if normalisation == "official" else f"{protocol.name}, {normalisation}"  # published numbers are official
    languages = "+".join(sorted({question.metadata.get("language") or "en" for question in questions}))
    for view in protocol.views(source, split):
        rows = {who: [a for a in all_ if view.contains(a.question)] for who, all_ in answered.items()}
        count = len(rows["model"])
        table = {"dataset": source, "view": view.name, "split": split, "language": languages, "questions": count}
        if count:
            views[view.name] = {**_scores(rows, normalisation), "published": published_beside(rules, table)}
            by_rule[view.name] = scored_by_every_rule([(a.key, a.question, a.prediction) for a in rows["model"]], source)
    written = [(g.best[0][0], g.generated) for g in given if g.generated is not None]
    return {
        "protocol": {"name": protocol.name, "habits": list(protocol.habits(source, normalisation))},
        "candidates": candidates.provenance,
        "training_questions": len(train),
        "normalisation": normalisation,
        "views": views,
        "rules": by_rule,
        "ranking_and_generation_agree": agreement(written, normalisation),
        "paraphrases": paraphrase_consistency(answered["model"], normalisation),
    }


def blind(
    asked: Sequence[tuple[str, Question]], train: Sequence[Question], normalisation: Normalisation
) -> dict[str, list[Answered]]:
    """What each baseline answers to questions, given with the names of their images; it learns from ``train`` alone."""
    questions = [question for _, question in asked]
    answers = {name: baseline(train, questions, normalisation) for name, baseline in BASELINES.items()}
    return {name: _scored(asked, predictions, normalisation) for name, predictions in answers.items()}


def _scored(asked: Sequence[tuple[str, Question]], predictions: Sequence[str], normalisation: Normalisation) -> list[Answered]:
    return [
        Answered(question, image, prediction, is_correct(prediction, question.answer, normalisation))
        for (image, question), prediction in zip(asked, predictions, strict=True)
    ]


def _scores(rows: Mapping[str, list[Answered]], normalisation: Normalisation) -> dict[str, Any]:
    """All scores of one view: everybody's accuracy and F1, and the model's by clean-up and by kind of question."""
    scores: dict[str, Any] = {}
    for who, mine in rows.items():
        scores[who] = {kind: accuracy.to_json() for kind, accuracy in by_kind(mine).items()}
        scores[who]["token_f1"] = mean_f1(mine, normalisation)
    model = rows["model"]
    forms: tuple[Normalisation, ...] = ("official", "fixed")
    scores["exact_match_by_clean_up"] = {
        form: round(100 * sum(is_correct(a.prediction, a.question.answer, form) for a in model) / len(model), 2) for form in forms
    }
    for name, field in _FIELDS.items():
        if found := by_field(model, field):
            scores[name] = {value: accuracy.to_json() for value, accuracy in found.items()}
    return scores


def write_results(folder: Path, results: dict[str, Any], given: Sequence[Prediction], normalisation: Normalisation) -> None:
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
            **({} if g.generated is None else {"generated": g.generated}),
            "metadata": dict(g.question.metadata),
        }
        for g in given
    ]
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / "results.json", results, ascii=False)


_ROWS = {
    "model": "this model",
    "question_only": "question only",
    "question_words": "question words",
    "most_frequent": "most frequent",
}
KINDS = ("closed", "open", "overall")


def with_interval(score: Mapping[str, Any]) -> str:
    """An accuracy with its interval, as a cell of a table: 41.2 [36.9, 45.5]."""
    if score["accuracy"] is None:
        return "-"
    low, high = score["interval"]
    return f"{score['accuracy']:.1f} [{low:.1f}, {high:.1f}]"


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """The table of every view: a row for the model, each baseline, and each published result under the same protocol.

    On 80 columns every figure stays whole; only a long name of a published method is wrapped.
    """
    console = console or Console()
    for name, view in results["views"].items():
        first = next(view[who] for who in _ROWS if who in view)
        total = first["overall"]["total"]
        rules = f"protocol {results['protocol']['name']}, in the form {results['normalisation']}"
        title = Text(plain(f"{name}: {total} questions, {rules}"))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("% right", overflow="fold")
        for kind in KINDS:
            table.add_column(f"{kind} ({first[kind]['total']})", justify="right", no_wrap=True)
        for who, label in _ROWS.items():
            if who in view:
                table.add_row(label, *(with_interval(view[who][kind]) for kind in KINDS), end_section=who == "most_frequent")
        for row in view.get("published", ()):
            table.add_row(Text(plain(f"{row['method']} (published)")), *(f"{row[kind]:.1f}" for kind in KINDS))
        console.print(table)
    if results["views"]:
        console.print("In brackets: the 95 % interval. question only, question words, most frequent: no image is seen.")
