"""The top of a report: a title that names model and data, and what was trained, what it scores and whether it looks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2i2.evaluation.dependence import least
from m2i2.evaluation.scoring import FEW
from m2i2.reporting.records import Evaluation, Run

NAMES = {
    "phantoms": "synthetic images",
    "vqa-rad": "VQA-RAD",
    "slake": "SLAKE",
    "pathvqa": "PathVQA",
    "vqa-med-2019": "VQA-Med 2019",
    "rocov2": "ROCOv2",
    "iu-xray": "Indiana University chest X-rays",
}
"""Sources of questions and captions as people call them."""
_WEAK = 3
"""Question types that a summary names."""


def title_of(runs: Sequence[Run]) -> str:
    """What was trained or asked, and on which data."""
    evaluations = [e for run in runs for e in run.evaluations]
    presets = [e.results.get("configuration", {}).get("preset") for e in evaluations]
    presets = list(dict.fromkeys(str(name) for name in presets or [run.settings.get("preset") for run in runs] if name))
    model = f"M2I2 {', '.join(presets)}".strip()
    if evaluations:
        return f"{model} on {', '.join(dict.fromkeys(data_of(e) for e in evaluations))}"
    stages = dict.fromkeys({"pretraining": "pretrained", "finetuning": "finetuned"}.get(run.stage, run.stage) for run in runs)
    data = dict.fromkeys(name for run in runs for name in _shards(run))
    return f"{model}, {' and '.join(stages)} on {', '.join(data) or 'synthetic images'}"


def data_of(evaluation: Evaluation) -> str:
    """The name of the data that an evaluation asked about."""
    shards = evaluation.results.get("shards", {})
    source = str(shards.get("source", "?"))
    return NAMES.get(source) or (Path(str(shards.get("folder", source))).name if source in ("json", "parquet") else source)


def trained(run: Run) -> str:
    """One sentence on how a run was trained; empty for an evaluation alone."""
    if not run.settings:
        return ""
    training, last = run.settings.get("training", {}), run.log[-1] if run.log else {}
    parts = [f"preset {run.settings.get('preset', '?')}", f"on {', '.join(_shards(run)) or 'synthetic images'}"]
    if last:
        parts.append(f"{last.get('step', 0):,} steps of {training.get('batch', '?')} samples, {last.get('epoch', 0):.1f} epochs")
    else:
        parts.append("no step logged yet")
    if run.starts and (ranks := run.starts[-1].get("ranks")):
        device = {"cpu": "the CPU", "cuda": "GPUs"}.get(str(run.starts[-1].get("device")), str(run.starts[-1].get("device")))
        parts.append(f"{ranks} rank{'s' if ranks != 1 else ''} on {device}")
    begun = [str(value) for key, value in run.settings.get("start", {}).items() if key in ("checkpoint", "image", "text") and value]
    parts.append(f"started from {' and '.join(begun)}" if begun else "started from random weights")
    if last.get("skipped_steps") or last.get("unreadable"):
        parts.append(f"skipped {last.get('skipped_steps', 0)} steps and {last.get('unreadable', 0)} unreadable samples")
    return f"{'; '.join(parts)}."


def tested(evaluation: Evaluation) -> str:
    """One sentence on what was asked, and how."""
    results = evaluation.results
    images = len({row.get("image") for row in evaluation.predictions})
    asked = results.get("splits", {}).get("asked") or len(evaluation.predictions)
    text = f"{asked:,} questions" + (f" about {images:,} images" if images else "")
    text += f" of {data_of(evaluation)}, split {results.get('split', '?')}; protocol {results.get('protocol', {}).get('name', '?')}"
    count = results.get("candidates", {}).get("count")
    ranked = str(results.get("method", {}).get("mode", "?")).startswith("rank")
    return text + (f"; answers ranked among {count:,} candidates." if count and ranked else "; answers written by beam search.")


def looks(found: Mapping[str, Any]) -> dict[str, str]:
    """The certificate's verdict and sentence; empty without a certificate."""
    if not found:
        return {}
    part = found["overall"]
    low, high = part[least(part)]["lost_interval"]
    verdict = "Yes" if low > 0 else "Not shown" if high > 0 else "No"
    return {"verdict": verdict, "on": f"Right answers to {part['questions']:,} questions", "sentence": str(found["sentence"])}


def weakest(types: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The question types with the fewest right answers, of those with enough questions to tell."""
    large = [one for one in types if one["total"] >= FEW]
    return sorted(large, key=lambda one: one["percent"])[:_WEAK] if len(large) > _WEAK else []


def _shards(run: Run) -> list[str]:
    folders = run.settings.get("data", {}).get("shards", [])
    return [str(folder) for folder in ([folders] if isinstance(folders, str) else folders)]
