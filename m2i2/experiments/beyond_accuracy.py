"""What an ablation's report says of each evaluation besides accuracy: the image-dependence certificate, and the rules in use."""

from collections.abc import Mapping, Sequence
from typing import Any

from m2i2.evaluation.dependence import CONDITIONS, least
from m2i2.evaluation.results import KINDS, with_interval
from m2i2.evaluation.rosetta import score_cell
from m2i2.evaluation.rules import RULES
from m2i2.experiments.markdown import head, row

Records = Sequence[Mapping[str, Any]]
_NEEDED = "points that need the image"


def looks(variants: Mapping[str, Records]) -> list[str]:
    """For every variant: accuracy with and without the right image. Intervals are those of the first seed.

    Empty where the records were written without a certificate.
    """
    held = {
        name: [r["results"]["image_dependence"] for r in rows if "image_dependence" in r["results"]]
        for name, rows in variants.items()
    }
    held = {name: found for name, found in held.items() if found}
    if not held:
        return []
    names = [name for name in CONDITIONS if name in next(iter(held.values()))[0]["overall"]]
    lines = [
        "Does the model look at the image? All questions, asked again with another image (first seed). The image is worth at least "
        "the smallest loss.",
        "",
        *head(["overall", "right image", *(CONDITIONS[name] for name in names), _NEEDED, "seeds", "answers that change"]),
    ]
    for variant, found in held.items():
        part = found[0]["overall"]
        worst = part[least(part)]
        lost = [f"{one['overall'][least(one['overall'])]['lost']:.1f}" for one in found]
        accuracies = [with_interval(part[name]) for name in ("right_image", *names)]
        lines.append(row([variant, *accuracies, _lost(worst), ", ".join(lost), f"{worst['changed']:.1f} %"]))
    return [*lines, "", *_by_type(*next(iter(held.items())))]


def _by_type(variant: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """By kind and type of question, what the image is worth to one variant."""
    parts = {kind: found[0][kind] for kind in KINDS if kind in found[0] and kind != "overall"} | dict(found[0]["by_question_type"])
    if not parts:
        return []
    lines = [f"The same by kind and type of question, for `{variant}`, first seed:", ""]
    lines += head(["questions", "count", "right image", "without it, at best", _NEEDED])
    for name, part in parts.items():
        worst = part[least(part)]
        scores = [with_interval(part["right_image"]), f"{worst['accuracy']:.1f}"]
        lines.append(row([name, str(part["questions"]), *scores, _lost(worst)]))
    return [*lines, ""]


def _lost(condition: Mapping[str, Any]) -> str:
    """What is lost under a condition, with its interval."""
    return with_interval({"accuracy": condition["lost"], "interval": condition["lost_interval"]})


def rules(variant: str, records: Records, view: str) -> list[str]:
    """The first seed's answers, scored by every rule in use; empty where the record was written without them."""
    found = records[0]["results"].get("rules", {}).get(view)
    if not found:
        return []
    lines = [f"The same answers (`{variant}`, first seed, {view}) by the rules of other systems:", ""]
    lines += head(["rule", "what is right", *KINDS, f"less {RULES[0].name}, points"])
    for rule in RULES:
        scores = found[rule.name]
        points = scores[f"less_{RULES[0].name}"]["points"]
        cells = [score_cell(scores[kind]) for kind in KINDS]
        lines.append(row([rule.name, scores["about"].replace("|", "\\|"), *cells, "-" if points is None else f"{points:+.1f}"]))
    return [*lines, ""]
