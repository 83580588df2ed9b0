"""The report of a recipe, from the records of its cells and nothing else: tables, a plot, and the text around them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2i2.errors import M2I2Error
from m2i2.evaluation.baselines import BASELINES, LABELS
from m2i2.evaluation.literature import literature, published
from m2i2.evaluation.results import KINDS, with_interval
from m2i2.evaluation.scoring import difference_interval, share_interval
from m2i2.experiments.beyond_accuracy import looks, rules
from m2i2.experiments.recipe import Cell, Recipe, cells
from m2i2.experiments.running import record_path
from m2i2.files import read_object, write_text
from m2i2.markdown import head, row

REFERENCE = "no pretraining"


@dataclass(frozen=True)
class Scored:
    """Finished finetunings of one variant on one data set, over the same questions."""

    variant: str
    records: tuple[dict[str, Any], ...]

    @cached_property
    def right(self) -> NDArray[np.float64]:
        """[seeds, questions], 1 where the answer was right."""
        return np.array([[float(c) for c in r["answers"]["right"]] for r in self.records])

    @cached_property
    def images(self) -> list[str]:
        """Which image each question is about."""
        return list(self.records[0]["answers"]["image"])

    def mask(self, view: str, kind: str) -> NDArray[np.bool_]:
        """The questions of a view and a kind (closed, open, overall)."""
        answers = self.records[0]["answers"]
        closed = np.array([c == "1" for c in answers["closed"]])
        chosen = {"closed": closed, "open": ~closed, "overall": np.ones_like(closed)}[kind]
        freeform = np.array([c == "1" for c in answers["freeform"]])
        return chosen & freeform if view == "freeform" else chosen

    def score(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """Mean over the seeds, percent; its interval over images; the spread over seeds."""
        per_seed = 100 * self.right[:, mask].mean(1)
        return {
            "accuracy": float(per_seed.mean()),
            "interval": _in_points(share_interval, self.right[:, mask].mean(0), self.images, mask),
            "seeds": [round(float(value), 1) for value in per_seed],
        }

    def common_seeds(self, other: "Scored") -> int:
        """How many seeds both have."""
        return min(len(self.records), len(other.records))

    def difference(self, other: "Scored", mask: NDArray[np.bool_]) -> str:
        """This variant less another over the seeds that both have, in points, with its interval over images."""
        seeds = self.common_seeds(other)
        change = (self.right[:seeds] - other.right[:seeds]).mean(0)[mask]
        low, high = _in_points(difference_interval, change, self.images, mask)
        return f"{100 * change.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


Interval = Callable[[Sequence[float], Sequence[str]], tuple[float, float]]


def _in_points(
    interval: Interval, values: NDArray[np.float64], images: Sequence[str], mask: NDArray[np.bool_]
) -> tuple[float, float]:
    kept = [image for image, yes in zip(images, mask, strict=True) if yes]
    low, high = interval(values.tolist(), kept)
    return 100 * low, 100 * high


def write_report(recipe: Recipe, recipe_file: Path, results: Path, output: Path) -> None:
    """``output`` (Markdown) and, where a finetuning is finished, a plot beside the records."""
    found = {c.name: read_object(record_path(results, c), "record") for c in cells(recipe) if record_path(results, c).exists()}
    by_dataset = {name: _scored(recipe, name, found) for name in recipe.plans}
    by_dataset = {name: scored for name, scored in by_dataset.items() if scored}
    lines = [f"# Results of the recipe `{recipe.name}`", "", recipe.about, "", *_how_to_read(recipe, recipe_file, results)]
    if by_dataset:
        _plot(by_dataset, results / "plot.png")
        lines += [f"![Accuracy by variant]({_relative(results / 'plot.png', output)})", ""]
    for dataset, scored in by_dataset.items():
        lines += _dataset(dataset, recipe.plans[dataset].note, scored)
    lines += _cells(recipe, found)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "\n".join(lines).rstrip() + "\n")


def _relative(path: Path, output: Path) -> str:
    return os.path.relpath(path.resolve(), output.resolve().parent)


def _scored(recipe: Recipe, dataset: str, found: dict[str, dict[str, Any]]) -> list[Scored]:
    variants: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for cell in cells(recipe):
        if cell.dataset == dataset and cell.name in found:
            variants.setdefault(cell.variant, []).append((cell.seed, found[cell.name]))
    mine = [cell.name for cell in cells(recipe) if cell.dataset == dataset and cell.name in found]
    forms = {found[name]["results"]["normalisation"]: name for name in mine}
    if len(forms) > 1:
        named = ", ".join(f"{name}: {form}" for form, name in forms.items())
        raise M2I2Error(
            f"The records of {dataset} score answers in different forms ({named}), "
            f"which do not belong in one table. Remove the records of one form and run their cells again."
        )
    ordered = [v for v in recipe.plans[dataset].of_seed(0) if v in variants]
    return [Scored(v, tuple(record for _, record in sorted(variants[v], key=lambda row: row[0]))) for v in ordered]


def _repeated(recipe: Recipe) -> str:
    seeds = max(plan.seeds for plan in recipe.plans.values())
    if recipe.pretraining_seeds == 1 < seeds:
        return "the finetuning (from one and the same pretraining) is repeated"
    return "training is repeated"


def _how_to_read(recipe: Recipe, recipe_file: Path, results: Path) -> list[str]:
    return [
        "Written by `launchers/ablate.py` from the records in "
        f"`{results}`; every cell can be made again with `python launchers/ablate.py {recipe_file} --data DIR --results {results} "
        "--only CELL` after its record is removed.",
        "",
        "Accuracy in percent: exact match in the form of answers that each data set's heading line names, mean over the seeds. "
        "Brackets hold the 95 % interval of a "
        "bootstrap over test images (2,000 resamples): how far the number might move on other images, for these trained models. "
        f"The column `seeds` shows how far it moves when {_repeated(recipe)} with another seed. "
        "A difference is significant at the usual level "
        "where its interval leaves out 0; none is corrected for the number of comparisons.",
        "",
    ]


def _dataset(dataset: str, note: str, scored: list[Scored]) -> list[str]:
    lines = [f"## {dataset}", ""]
    first = scored[0].records[0]["results"]
    how = f"Protocol `{first['protocol']['name']}`, answers in the form `{first['normalisation']}`"
    lines += [f"{how}: {_counts(first)}", "", *([note, ""] if note else [])]
    if (first["protocol"]["name"], first["normalisation"]) == ("clean", "official"):
        lines += [_OLDER_FORM, ""]
    reference = next((s for s in scored if s.variant == REFERENCE), None)
    for view in first["views"]:
        totals = {kind: int(scored[0].mask(view, kind).sum()) for kind in KINDS}
        columns = [f"{view}", *(f"{kind} ({totals[kind]})" for kind in KINDS), "overall, seeds", f"overall, less {REFERENCE}"]
        lines += head(columns)
        for one in scored:
            scores = {kind: one.score(one.mask(view, kind)) for kind in KINDS}
            difference = "" if reference in (None, one) else one.difference(reference, one.mask(view, "overall"))
            seeds = ", ".join(f"{value:.1f}" for value in scores["overall"]["seeds"])
            lines.append(row([one.variant, *(with_interval(scores[kind]) for kind in KINDS), seeds, difference]))
        for who in [name for name in BASELINES if name in first["views"][view]]:
            lines.append(row([LABELS[who], *(with_interval(first["views"][view][who][kind]) for kind in KINDS), "", ""]))
        lines.append("")
    lines += _worth(scored) + looks({one.variant: one.records for one in scored})
    lines += rules(scored[0].variant, scored[0].records, list(first["views"])[-1])
    return lines + _beside(dataset, list(first["views"]))


def _counts(results: dict[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in results["splits"].items()) + "."


_OLDER_FORM = (
    "These rows are of an earlier version: under `clean` it trained, ranked and scored answers in the form `official`, and today "
    "`clean` uses `fixed`. A record keeps which questions were answered correctly, not the answers themselves, so these rows "
    "cannot be scored in the form `fixed`. Their cells must be run again for that."
)
_WORTH = {
    ("full", REFERENCE): "All of the pretraining is worth {gain} points over all questions, by {seeds}.",
    ("with rewrites", "full"): "Training on the rewrites of test questions as well, nothing else changed: {gain} points over "
    "`full`, overall.",
}


def _worth(scored: list[Scored]) -> list[str]:
    """What pretraining as a whole, and training on the rewrites of test questions, are worth."""
    named = {one.variant: one for one in scored}
    lines = []
    for (more, less), sentence in _WORTH.items():
        if more in named and less in named:
            one, other = named[more], named[less]
            seeds = one.common_seeds(other)
            gain = one.difference(other, one.mask("", "overall"))
            lines += [sentence.format(gain=gain, seeds=f"{seeds} seed{'s' * (seeds > 1)}"), ""]
    return lines


def _beside(dataset: str, views: Sequence[str]) -> list[str]:
    """The paper's own ablation, which is not a comparison."""
    rows = [(view, one) for view in views for one in published(dataset, view, "paper") if one["method"].startswith("M2I2")]
    if not rows:
        return []
    lines = [
        f"For orientation, the paper's own rows (protocol `paper`, ViT-B/16 and BERT-base at 384 pixels, {_setup()}), which are "
        f"another experiment: {literature()['source']}.",
        "",
        *head(["published", *KINDS]),
    ]
    lines += [row([f"{one['method']} ({view})", *(f"{one[kind]:.1f}" for kind in KINDS)]) for view, one in rows]
    return [*lines, ""]


def _setup() -> str:
    return f"{literature()['setup']['pretraining_pairs']:,} pretraining pairs, best of all epochs on the test set"


def _cells(recipe: Recipe, found: dict[str, dict[str, Any]]) -> list[str]:
    """What ran, and what has not yet."""
    lines = ["## Cells", "", *head(["cell", "last loss", "selection", "minutes of its last start", "commit"])]
    missing: list[Cell] = []
    for cell in cells(recipe):
        if cell.name not in found:
            missing.append(cell)
            continue
        record = found[cell.name]
        best = (record.get("selection") or {}).get("best")
        chosen = f"{best['correct']} of {best['total']} at step {best['step']}" if best else ""
        seconds = record["seconds_of_this_start"]
        minutes = "-" if seconds is None else f"{seconds / 60:.1f}"
        lines.append(row([cell.name, f"{record['log']['last']['loss']:.3f}", chosen, minutes, record["git"][:10]]))
    lines += ["", "Same for all cells of a kind:", "", f"- pretraining: `{' '.join(recipe.pretraining)}`"]
    lines += [f"- finetuning: `{' '.join(recipe.finetuning)}`", f"- evaluation: `{' '.join(recipe.evaluation)}`"]
    if missing:
        lines += ["", f"Not run yet: {', '.join(cell.name for cell in missing)}."]
    return lines


def _plot(by_dataset: dict[str, list[Scored]], path: Path) -> None:
    """Overall accuracy of every variant: a dot a seed, a bar for the interval of their mean, a line for the question alone."""
    try:
        import matplotlib
    except ImportError as e:
        raise M2I2Error("matplotlib is not installed; pip install '.[plots]', then --report.") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(by_dataset), figsize=(4.6 * len(by_dataset), 3.2), squeeze=False)
    for axis, (dataset, scored) in zip(axes[0], by_dataset.items(), strict=True):
        for place, one in enumerate(scored):
            score = one.score(one.mask("", "overall"))
            axis.plot(score["interval"], [place, place], color="tab:blue", linewidth=2)
            axis.plot(score["seeds"], [place] * len(score["seeds"]), "o", color="tab:blue", markersize=4)
        views = scored[0].records[0]["results"]["views"]
        baseline = list(views.values())[-1]["question_only"]["overall"]["accuracy"]
        axis.axvline(baseline, color="tab:gray", linestyle="--", label="question only")
        axis.set_yticks(range(len(scored)), [one.variant for one in scored])
        axis.invert_yaxis()
        axis.set_xlabel("accuracy overall, %")
        axis.set_title(dataset)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
