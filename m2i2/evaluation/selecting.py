"""The score that chooses a checkpoint while finetuning: questions of no test image, answered by greedy generation."""

import torch
import torch.distributed as dist
from torch import nn

from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.text.cleaning import Normalisation
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.evaluation.protocols import Candidates
from m2i2.evaluation.scoring import is_correct
from m2i2.inference.predictor import Evaluator, Method
from m2i2.models.vqa import VQAModel
from m2i2.training.processes import Process


class SelectionScore:
    """Counts right answers; each rank asks its share of the questions.

    Answers are written token by token (one beam), which needs no list of candidates and takes a fraction of ranking's time.
    """

    def __init__(
        self, split: SelectedSplit, tokenizer: Tokenizer, normalisation: Normalisation, process: Process, dtype: torch.dtype
    ) -> None:
        self.total = len(split)
        self._mine = SelectedSplit(split.whole, split.chosen[process.rank :: process.ranks].tolist(), "share of a rank")
        self._tokenizer, self._normalisation, self._process, self._dtype = tokenizer, normalisation, process, dtype

    def __call__(self, model: nn.Module) -> tuple[int, int]:
        """Right answers over all ranks, and questions. Collective; leaves the model in evaluation mode."""
        assert isinstance(model, VQAModel)
        method = Method(mode="generate", beams=1, normalisation=self._normalisation)
        nothing = Candidates((), "none")
        evaluator = Evaluator(model, self._tokenizer, nothing, method, self._process.device, self._dtype, batch=32)
        given = evaluator.ask(self._mine, progress=False)
        right = sum(is_correct(g.best[0][0], g.question.answer, self._normalisation) for g in given)
        counted = torch.tensor([right], device=self._process.device)
        dist.all_reduce(counted)
        return int(counted), self.total
