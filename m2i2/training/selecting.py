"""Choosing a checkpoint: the model is scored at intervals while it trains, and the best one is kept."""

import json
from collections.abc import Callable

import torch
from torch import nn

from m2i2.distributed import max_over_ranks
from m2i2.training.checkpoint import SELECTION, Checkpoints, write_json
from m2i2.training.processes import Process


class Selection:
    """Scores of a run on the questions that choose its checkpoint, kept in ``selection.json`` beside the checkpoints."""

    def __init__(self, score: Callable[[nn.Module], tuple[int, int]], every: int) -> None:
        """``score``: right answers and questions over all ranks, collective. ``every``: optimizer steps between two scorings."""
        self._score, self._every = score, every
        self._rows: list[dict[str, int]] = []

    def resume(self, checkpoints: Checkpoints, step: int) -> None:
        """Take up the scores of a run that goes on after ``step``."""
        try:
            rows = json.loads((checkpoints.folder / SELECTION).read_text())["scores"]
            self._rows = [row for row in rows if row["step"] <= step]
        except (OSError, ValueError, TypeError, KeyError):
            self._rows = []

    def due(self, step: int, last: int) -> bool:
        """Whether the model is scored after this step: at every interval, and after the last step."""
        return step % self._every == 0 or step == last

    def improved(self, model: nn.Module, step: int, process: Process) -> bool:
        """Score the model; whether it beats every score before (of two equals the earlier stays). Collective."""
        correct, total = self._score(model)
        model.train()
        better = correct > max((row["correct"] for row in self._rows if row["step"] < step), default=-1)
        better = bool(max_over_ranks(torch.tensor([int(better and process.first)], device=process.device)).item())
        self._rows.append({"step": step, "correct": correct, "total": total})
        process.say(f"step {step}: {correct} of {total} of the selection right{', the best so far' if better else ''}")
        return better

    def write(self, checkpoints: Checkpoints) -> None:
        """Store the scores; from here on the best of them names the checkpoint to keep."""
        best = max(self._rows, key=lambda row: (row["correct"], -row["step"]))
        write_json(checkpoints.folder / SELECTION, {"best": best, "scores": self._rows})
