"""The page: what a template needs, taken from the records."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

import m2i2
from m2i2.data.text.cleaning import same_spelling
from m2i2.errors import M2I2Error
from m2i2.evaluation.dependence import CONDITIONS, least
from m2i2.evaluation.reach import remarks
from m2i2.reporting.charts import chart, line_of, reliability
from m2i2.reporting.examples import Examples, examples_of
from m2i2.reporting.records import Evaluation, Rows, Run
from m2i2.training.display import losses_of

_WHO = {"model": "this model", "question_only": "question only (no image)", "most_frequent": "most frequent answer"}
_KINDS = ("closed", "open", "overall")


def render(runs: Sequence[Run], *, examples: int, shards: Path | None, explain: bool) -> str:
    """The HTML of a report on some runs; nothing in it refers to anything outside the file.

    M2I2Error where the records of a run are of other kinds than a run writes.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m2i2.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        return environment.get_template("report.html.j2").render(
            title=", ".join(run.folder.name for run in runs),
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            version=m2i2.__version__,
            runs=[_run(run, examples, shards, explain) for run in runs],
        )
    except M2I2Error:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, jinja2.TemplateError) as e:
        raise M2I2Error(
            f"The records in {', '.join(str(run.folder) for run in runs)} are not as a run writes them ({type(e).__name__}: {e}). "
            f"Copy them again, or report this if nothing has changed them."
        ) from e


def _run(run: Run, examples: int, shards: Path | None, explain: bool) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "stage": run.stage,
        "facts": list(_facts(run)),
        "trained": bool(run.settings),
        "charts": _charts(run),
        "reconstructions": _reconstructions(run),
        "retrieval": _retrieval(run),
        "validated": bool(run.validations),
        "evaluations": [_evaluation(e, examples_of(e, examples, shards, explain)) for e in run.evaluations],
        "settings": list(_flat(run.settings)),
        "start": run.starts[-1] if run.starts else _start_of(run.evaluations),
        "starts": len(run.starts),
    }


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """The few figures that stand at the top of a run."""
    if run.settings:
        training = run.settings.get("training", {})
        yield "preset", str(run.settings.get("preset", "?"))
        yield "batch", str(training.get("batch", "?"))
    if run.log:
        last = run.log[-1]
        yield "steps", f"{last.get('step', 0):,}"
        yield "epochs", f"{last.get('epoch', 0):.1f}"
        if "loss" in last:
            yield "last loss", f"{last['loss']:.3f}"
        if rates := [row["samples_per_s"] for row in run.log if "samples_per_s" in row]:
            yield "samples/s (median)", f"{sorted(rates)[len(rates) // 2]:.1f}"
        if last.get("skipped_steps") or last.get("unreadable"):
            yield "skipped", f"{last.get('skipped_steps', 0)} steps, {last.get('unreadable', 0)} samples"
    if run.validations and "image_to_text_r5" in run.validations[-1]:
        last = run.validations[-1]
        yield f"recall@5 of {last.get('pairs', 0):.0f}", f"{last['image_to_text_r5']:.1f} %"


def _charts(run: Run) -> list[Any]:
    log, held_out = run.log, run.validations
    made = [
        chart(name, [line_of(log, name, "training"), line_of(held_out, name, "held out", marked=True)])
        for name in (losses_of(max(log, key=len)) if log else [])
    ]
    for way, label in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        made.append(
            chart(
                f"recall, {label}, %",
                [line_of(held_out, f"{way}_r{k}", f"@{k}", marked=True) for k in (1, 5, 10)],
            )
        )
    made += [
        chart("learning rate", [line_of(log, "lr", "lr")]),
        chart("temperature", [line_of(log, "temperature", "temperature")]),
        chart("samples per second", [line_of(log, "samples_per_s", "samples/s")]),
        chart("waiting for data, %", [line_of(log, "data_wait", "of the time", scale=100)]),
        chart("peak memory, GiB", [line_of(log, "memory_gib", "rank 0")]),
        chart("MFU, %", [line_of(log, "mfu", "of the peak", scale=100)]),
    ]
    return [svg for svg in made if svg]


def _reconstructions(run: Run) -> list[dict[str, str]]:
    """The first and the last picture of masked images."""
    paths = run.reconstructions
    return [
        {
            "step": str(int(path.stem.removeprefix("reconstructions-"))),
            "image": "data:image/png;base64," + base64.b64encode(run.picture(path)).decode(),
        }
        for path in ([paths[0], paths[-1]] if len(paths) > 1 else paths)
    ]


def _retrieval(run: Run) -> dict[str, Any]:
    """The last validation's examples, their images inlined."""
    found = run.retrieval
    examples = []
    for example in found.get("image_to_text", []):
        path = run.folder / "validation" / Path(str(example["image"])).name
        data = base64.b64encode(run.picture(path)).decode()
        examples.append({**example, "image": f"data:image/png;base64,{data}" if data else ""})
    return {"step": found.get("step"), "pairs": found.get("pairs"), "examples": examples}


def _evaluation(evaluation: Evaluation, examples: Examples) -> dict[str, Any]:
    results = evaluation.results
    protocol = results.get("protocol", {})
    return {
        "name": evaluation.folder.name,
        "split": results.get("split", "?"),
        "protocol": protocol.get("name", "?"),
        "method": results.get("method", {}).get("mode", "?"),
        "habits": protocol.get("habits", []),
        "candidates": results.get("candidates", {}),
        "form": results.get("normalisation", "?"),
        "remarks": remarks(results["answers"]) if "answers" in results else [],
        "views": [_view(name, view) for name, view in results.get("views", {}).items()],
        "dependence": _dependence(results.get("image_dependence", {})),
        "paraphrases": results.get("paraphrases"),
        "localisation": _localisation(evaluation.localisation),
        "calibration": _calibration(results.get("calibration", {})),
        "rules": [_rules(name, found) for name, found in results.get("rules", {}).items()],
        "types": _by_type(evaluation.predictions),
        "yes_no": _yes_no(evaluation.predictions),
        "questions": len(evaluation.predictions),
        "examples": examples,
        "source": results.get("shards", {}).get("source", "?"),
    }


def _view(name: str, view: Mapping[str, Any]) -> dict[str, Any]:
    """A table of one view: a line for the model and each baseline, then what was published under the same protocol."""
    lines = [
        {"who": label, "cells": [_score(view[who].get(kind, {})) for kind in _KINDS], "ours": who == "model"}
        for who, label in _WHO.items()
        if who in view
    ]
    published = view.get("published")
    for row in published if isinstance(published, list) else []:
        who = f"{row.get('model') or row.get('name') or row.get('method', '?')} (published)"
        lines.append({"who": who, "cells": [_score({"accuracy": row.get(kind)}) for kind in _KINDS], "ours": False})
    model = view.get("model", {})
    return {"name": name, "lines": lines, "totals": [model.get(kind, {}).get("total", "?") for kind in _KINDS]}


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    """An accuracy with its interval, where one is stored."""
    interval = score.get("interval")
    return {
        "accuracy": score.get("accuracy"),
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
    }


def _dependence(found: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate as two tables: accuracy by kind under each image, and by question type what the image is worth."""
    if not found:
        return {}
    names = [name for name in CONDITIONS if name in found["overall"]]
    kinds = [kind for kind in _KINDS if kind in found]
    shown = {"right_image": "its own image", **{name: CONDITIONS[name] for name in names}}
    lines = [{"who": who, "ours": name == "right_image", "cells": [found[k][name] for k in kinds]} for name, who in shown.items()]
    types = [{"name": name, "part": part, "least": part[least(part)]} for name, part in found["by_question_type"].items()]
    totals = [found[kind]["questions"] for kind in kinds]
    return {"sentence": found["sentence"], "kinds": list(zip(kinds, totals, strict=True)), "lines": lines, "types": types}


def _localisation(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of tools/gradcam.py --slake: the lines of the mean over all layers."""
    return [line for line in found.get("summary", []) if isinstance(line, dict) and line.get("layer") == "all"]


def _calibration(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A reliability diagram and its figures for each kind of question."""
    return [{**found[kind], "kind": kind, "svg": reliability(kind, found[kind]["bins"])} for kind in _KINDS if kind in found]


def _rules(view: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One view's answers by every rule in use: scores, and what each is worth against the first."""
    first = next(iter(found), "")
    lines = []
    for name, scores in found.items():
        cells = [{**_score({**scores[kind], "accuracy": scores[kind]["score"]}), **scores[kind]} for kind in _KINDS]
        lines.append(
            {"name": name, "about": scores["about"], "source": scores["source"], "cells": cells, **scores[f"less_{first}"]}
        )
    return {"name": view, "first": first, "lines": lines}


def _by_type(rows: Rows) -> list[dict[str, Any]]:
    """By kind of question: how many, how many right, and what was taken for what."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(str(row.get("metadata", {}).get("question_type") or "not told"), []).append(row)
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


def _yes_no(rows: Rows) -> dict[str, Any]:
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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _start_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Versions, commit and command of an evaluation that has no run beside it."""
    return {key: evaluations[0].results.get(key) for key in ("versions", "git", "command")} if evaluations else {}
