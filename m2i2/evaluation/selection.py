"""Choosing a checkpoint: the model is scored at intervals while it is finetuned, and the best one is kept."""

import torch
import torch.distributed as dist

from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.distributed import max_over_ranks
from m2i2.evaluation.scoring import is_correct
from m2i2.files import MOST_JSON, parse_json, read_bytes, write_json
from m2i2.inference.generation import LONGEST
from m2i2.inference.predictor import Method, Predictor
from m2i2.tasks.vqa import VQATask
from m2i2.training.checkpoint import SELECTION, Checkpoints
from m2i2.training.evaluators import Evaluator, Measured
from m2i2.training.processes import Process


class Selection(Evaluator):
    """Scores of a run on the questions that choose its checkpoint, kept in ``selection.json`` beside the checkpoints.

    Each rank asks its share of the questions, which are about no test image. Answers are written token by token (one beam),
    which needs no list of candidates and takes a fraction of ranking's time.
    """

    def __init__(
        self, task: VQATask, split: SelectedSplit, tokenizer: Tokenizer, process: Process, every: int, longest: int = LONGEST
    ) -> None:
        """``split``: the questions; ``every``: optimizer steps between two scorings; ``longest``: tokens of an answer at most."""
        self.task, self.tokenizer, self.process, self.every, self.longest = task, tokenizer, process, every, longest
        self._total = len(split)
        self._mine = SelectedSplit(split.whole, split.chosen[process.rank :: process.ranks].tolist(), "share of a rank")
        self._rows: list[dict[str, int]] = []

    def resume(self, checkpoints: Checkpoints, step: int) -> None:
        """Take up the scores of a run that has done ``step`` steps."""
        try:
            rows = parse_json(read_bytes(checkpoints.folder / SELECTION, MOST_JSON))["scores"]
            self._rows = [row for row in rows if row["step"] <= step]
        except (OSError, ValueError, TypeError, KeyError):
            self._rows = []

    def measure(self, step: int) -> Measured:
        """Score the model; it is kept where it beats every score before (of two equals the earlier stays)."""
        correct = self._score()
        better = correct > max((row["correct"] for row in self._rows if row["step"] < step), default=-1)
        better = bool(max_over_ranks(torch.tensor([int(better and self.process.first)], device=self.process.device)).item())
        self._rows = [row for row in self._rows if row["step"] < step] + [{"step": step, "correct": correct, "total": self._total}]
        self.process.say(f"step {step}: {correct} of {self._total} of the selection right{', the best so far' if better else ''}")
        return Measured({"selection_accuracy": 100 * correct / self._total}, keep=better)

    def conclude(self, checkpoints: Checkpoints) -> None:
        """Store the scores; from here on the best of them names the checkpoint to keep."""
        best = max(self._rows, key=lambda row: (row["correct"], -row["step"]))
        write_json(checkpoints.folder / SELECTION, {"best": best, "scores": self._rows})

    def _score(self) -> int:
        """Right answers over all ranks."""
        normalisation = self.task.config.answering.form
        method = Method(mode="generate", beams=1, max_tokens=self.longest, normalisation=normalisation)
        model = self.task.student
        predictor = Predictor(model, self.tokenizer, (), method, self.process.device, self.task.dtype, batch=32)
        given = predictor.predict(self._mine, progress=False)
        right = sum(is_correct(g.best[0][0], g.question.answer, normalisation) for g in given)
        model.train()
        counted = torch.tensor([right], device=self.process.device)
        dist.all_reduce(counted)
        return int(counted)
