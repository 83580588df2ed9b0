"""The page: what its templates need, taken from the records."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

import m2i2
from m2i2.errors import M2I2Error
from m2i2.evaluation.reach import remarks
from m2i2.inference.overlay import LEGEND, MOST, TICKS, scale_bar
from m2i2.reporting.course import curves_of, notes_of, reconstructions_of, retrieval_of
from m2i2.reporting.examples import Examples, examples_of
from m2i2.reporting.goodput import goodput
from m2i2.reporting.records import Evaluation, Run
from m2i2.reporting.scores import by_type, calibration_of, dependence_of, localisation_of, rules_of, view_of, yes_no_of
from m2i2.reporting.summary import data_of, looks, tested, title_of, trained, weakest


def render(runs: Sequence[Run], *, examples: int, shards: Path | None, explain: bool) -> str:
    """The HTML of a report on some runs; nothing in it refers to anything outside the file.

    M2I2Error where the records of a run are of other kinds than a run writes.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m2i2.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"one": lambda value: f"{value:.1f}", "interval": _interval}
    try:
        return environment.get_template("report.html.j2").render(
            title=title_of(runs),
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            version=m2i2.__version__,
            runs=[{"anchor": f"r{i}", **_run(run)} for i, run in enumerate(runs)],
            evaluations=[
                {
                    "anchor": f"e{i}-{j}",
                    "run": run.folder.name,
                    **_evaluation(e, examples_of(e, examples, shards, explain)),
                }
                for i, run in enumerate(runs)
                for j, e in enumerate(run.evaluations)
            ],
            scale={"image": _scale(), "ticks": TICKS, "about": LEGEND, "most": MOST},
        )
    except M2I2Error:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, jinja2.TemplateError) as e:
        raise M2I2Error(
            f"The records in {', '.join(str(run.folder) for run in runs)} are not as a run writes them ({type(e).__name__}: {e}). "
            f"Copy them again, or report this if nothing has changed them."
        ) from e


def _interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _scale() -> str:
    """The colours of every Grad-CAM, as a data: address."""
    out = io.BytesIO()
    scale_bar(240, 1).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "stage": run.stage,
        "evaluated": bool(run.evaluations),
        "trained": trained(run),
        "logged": bool(run.log),
        "curves": curves_of(run),
        "notes": notes_of(run),
        "goodput": goodput(run.goodput, run.log),
        "reconstructions": reconstructions_of(run),
        "retrieval": retrieval_of(run),
        "settings": list(_flat(run.settings)),
        "start": run.starts[-1] if run.starts else _start_of(run.evaluations),
        "starts": len(run.starts),
    }


def _evaluation(evaluation: Evaluation, examples: Examples) -> dict[str, Any]:
    results = evaluation.results
    protocol, types = results.get("protocol", {}), by_type(evaluation.predictions)
    return {
        "name": evaluation.folder.name,
        "data": data_of(evaluation),
        "split": results.get("split", "?"),
        "tested": tested(evaluation),
        "form": results.get("normalisation", "?"),
        "habits": protocol.get("habits", []),
        "candidates": results.get("candidates", {}),
        "remarks": remarks(results["answers"]) if "answers" in results else [],
        "views": [view_of(name, view) for name, view in results.get("views", {}).items()],
        "looks": looks(results.get("image_dependence", {})),
        "dependence": dependence_of(results.get("image_dependence", {})),
        "paraphrases": results.get("paraphrases"),
        "localisation": localisation_of(evaluation.localisation),
        "calibration": calibration_of(results.get("calibration", {})),
        "rules": [rules_of(name, found) for name, found in results.get("rules", {}).items()],
        "types": types,
        "weakest": weakest(types),
        "yes_no": yes_no_of(evaluation.predictions),
        "questions": len(evaluation.predictions),
        "examples": examples,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _start_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Versions, commit and command of an evaluation that has no run beside it."""
    return {key: evaluations[0].results.get(key) for key in ("versions", "git", "command")} if evaluations else {}
