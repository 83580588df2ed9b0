"""A finetuned model for lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), which finds it under the name ``m2i2``:

    python -m lmms_eval --model m2i2 --model_args pretrained=hub/vqa --tasks slake

lmms-eval loads this module by the entry point ``lmms_eval.models``; nothing else of this package imports it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from m2i2.errors import M2I2Error
from m2i2.hub.modeling import M2I2ForVisualQuestionAnswering
from m2i2.inference.answering import Answerer, open_image
from m2i2.workflows.answering import read_candidates

MANIFEST = ModelManifest(model_id="m2i2", simple_class_path="m2i2.app.lmms.M2I2")


class M2I2(lmms):
    """Answers are written by beam search, or chosen among ``candidates``. A question is about one image."""

    def __init__(
        self, pretrained: str, device: str = "cpu", candidates: str = "", whole_prompt: bool | str = False, **ignored: Any
    ) -> None:
        """``pretrained``: a folder of tools/convert.py, or a name on the hub. ``candidates``: see `read_candidates`.

        ``whole_prompt``: ask all of a task's prompt. By default only its first line: what follows it tells language models how to
        answer. M2I2Error for a model that answers no questions, and for a file of candidates that cannot be read.
        """
        super().__init__()
        self.model = M2I2ForVisualQuestionAnswering.from_pretrained(pretrained).to(device).eval()
        self._writing = self._answerer()
        self._chosen_by = self._answerer(read_candidates(Path(candidates))) if candidates else self._writing
        self._whole = str(whole_prompt).lower() in ("true", "1")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The likeliest answer to each request."""
        answers = []
        for request in tqdm(requests, desc="questions", disable=None):
            prompt, _, to_visual, doc, task, split = request.args
            image, question = self._asked(prompt, to_visual, self.task_dict[task][split][doc])
            answers.append(self._chosen_by.answer(image, question, top=1)[0][0])
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-probability of each request's answer, and whether beam search writes it."""
        found = []
        for request in tqdm(requests, desc="answers", disable=None):
            prompt, target, to_visual, doc, task, split = request.args
            document = self.task_dict[task][split][doc]
            image, question = self._asked(prompt, to_visual, document)
            answer = target(document) if callable(target) else target
            one = self._answerer([str(answer)])
            written = self._writing.answer(image, question, top=1)
            same = bool(written) and one.answer_tokens(written[0][0]) == one.answer_tokens(one.candidates[0])
            found.append((one.log_probability(image, question), same))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: the model keeps no conversation."""
        raise M2I2Error("M2I2 answers one question about one image at a time; choose a task without rounds.")

    def _answerer(self, candidates: Sequence[str] = ()) -> Answerer:
        processor = self.model.processor
        return Answerer(self.model.network, processor.own_tokenizer, processor.normalisation, candidates)

    def _asked(self, prompt: str, to_visual: Any, document: Any) -> tuple[Any, str]:
        visuals = to_visual(document)
        if len(visuals) != 1:
            raise M2I2Error(f"M2I2 answers questions about one image; this one has {len(visuals)}: {prompt!r:.80}")
        return open_image(visuals[0]), prompt if self._whole else prompt.strip().split("\n")[0]
