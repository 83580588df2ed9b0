"""Our numbers beside a folder's, quantity by quantity."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.parity.fixture import has_answering, largest_difference, tensors
from tests.parity.steps import CPU, answering_step, pretraining_step

EXACT = 1e-9
"""Values reproduced to this are the same computation."""
Differences = dict[str, float]
"""The largest difference of each recorded tensor; infinite where it cannot be compared."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    tensors: int
    worst: float
    where: str


def differences(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Differences:
    """Of every official tensor; one that is missing in ``ours``, or of another size, is infinitely far."""
    return {
        name: largest_difference(ours[name].double().cpu(), tensor.double())
        if name in ours and ours[name].numel() == tensor.numel()
        else float("inf")
        for name, tensor in official.items()
    }


def of_pretraining(folder: Path, device: torch.device = CPU) -> Differences:
    """Of the pretraining step, computed on ``device``; a gradient that we have and the folder has not is infinitely far too."""
    ours, official = pretraining_step(folder, device), tensors(folder, "pretrain_outputs")
    more = {name for name in ours if name.startswith("grad.")} - set(official)
    return {**differences(ours, official), **dict.fromkeys(more, float("inf"))}


def of_answering(folder: Path, device: torch.device = CPU) -> Differences:
    """Of the VQA part, computed on ``device``: its outputs, and the weights that it starts from."""
    official, state = tensors(folder, "vqa_outputs"), tensors(folder, "vqa_state_dict")
    official["fused_states"] = official["fused_states"] * tensors(folder, "vqa_inputs")["question_mask"].unsqueeze(2)
    ours = answering_step(folder, device)
    starts = {f"start.{name}": tensor for name, tensor in state.items() if f"start.{name}" in ours}
    missing = {name for name in ours if name.startswith("start.")} - set(starts)
    return {**differences(ours, {**official, **starts}), **dict.fromkeys(missing, float("inf"))}


_PRETRAINING = {
    **{"losses": "loss_", "features": ("image_feat", "text_feat"), "matching logits": "itm_logits"},
    **{"queue": ("image_queue", "text_queue", "queue_ptr"), "teacher after": "teacher_after.", "gradients": "grad."},
}
_ANSWERING = {
    **{"VQA start weights": "start.", "VQA losses": "loss_", "VQA states": "fused_states", "VQA ranking": "rank_"},
    **{"VQA gradients": "grad_plain.", "VQA gradients, distilled": "grad_distill."},
}


def table(folder: Path) -> list[Row]:
    """Every quantity of a folder with its worst difference."""
    parts = [(_PRETRAINING, of_pretraining(folder))]
    if has_answering(folder):
        parts.append((_ANSWERING, of_answering(folder)))
    rows = []
    for names, found in parts:
        left = dict(found)
        for what, starts in names.items():
            mine = {name: left.pop(name) for name in list(left) if name.startswith(starts)}
            where = max(mine, key=lambda name: mine[name], default="")
            # a quantity without records does not count as agreement
            rows.append(Row(what, len(mine), mine.get(where, float("inf")), where or "not in the folder"))
        rows += [Row("of unknown meaning", 1, float("inf"), name) for name in left]
    return rows
