"""One question about one image: the likeliest answers, and where in the image they come from."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from m2i2.data.images.picture import PictureSource, opened
from m2i2.data.images.transforms import EvaluationTransform, normalise
from m2i2.data.loading.padding import pad_rows
from m2i2.data.text.cleaning import TEST_WORDS, Normalisation, candidate_answers, clean_question, ranked_answer
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.errors import M2I2Error
from m2i2.inference.generation import LONGEST, all_beams
from m2i2.inference.gradcam import Cam, gradcam
from m2i2.inference.ranking import CandidateTree, likeliest
from m2i2.models.vqa import VQAModel

_LONGEST = 64
"""Tokens of an answer that is written where no candidates bound it."""
Answer = tuple[str, float]
"""An answer and its probability: among the candidates, or, without candidates, among all texts."""


def open_image(source: PictureSource, name: str = "given") -> Image.Image:
    """The RGB image of a file (anything Pillow reads, DICOM), its bytes (called ``name``), a PIL image, an array or a tensor.

    M2I2Error for anything else; what may be wrong with the picture is a warning.
    """
    return opened(source, name)


class Answerer:
    """A model with its tokenizer, asked one question at a time. It keeps no state between questions: threads may share it."""

    def __init__(self, model: VQAModel, tokenizer: Tokenizer, normalisation: Normalisation, candidates: Sequence[str] = ()) -> None:
        """``candidates``: the answers to choose from, of the same ``fixed`` form once; none: answers are written by beam search."""
        assert not model.training
        self.model, self.tokenizer, self.normalisation = model, tokenizer, normalisation
        self.device = next(model.parameters()).device
        self.transform = EvaluationTransform(size=model.vision.image_size)
        fixed = normalisation == "fixed"
        self.candidates = candidate_answers(candidates, "fixed") if fixed else tuple(dict.fromkeys(candidates))
        if candidates and not self.candidates:
            raise M2I2Error("None of the candidates holds a text; name answers to choose from, or none to have them written.")
        self.longest = min(_LONGEST, model.text.positions - 3) if fixed else LONGEST
        self.tree = None
        if self.candidates:
            self.tree = CandidateTree.build([self.answer_tokens(answer) for answer in self.candidates]).to(self.device)

    def answer_tokens(self, answer: str) -> list[int]:
        """[CLS] answer [SEP] [SEP], in the form in which candidates are ranked."""
        return self.tokenizer.encode_answer(ranked_answer(answer, self.normalisation), self.model.text.positions)

    def question_tokens(self, question: str) -> list[int]:
        """[CLS] question [SEP] after its clean-up; M2I2Error for one without words."""
        text = clean_question(question, TEST_WORDS, self.normalisation).strip()
        if not text:
            raise M2I2Error("The question is empty; ask something about the image.")
        return self.tokenizer.encode(text, self.model.text.positions)

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image -> [1, 3, H, W] as the model takes it."""
        return normalise(self.transform.of_image(image)[None].to(self.device)).to(next(self.model.parameters()).dtype)

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str, top: int = 5) -> list[Answer]:
        """At most ``top`` answers, likeliest first."""
        ids, mask = (t.to(self.device) for t in pad_rows([self.question_tokens(question)], self.tokenizer.pad_id))
        states = self.model.encode_question(ids, mask, self.model.encode_image(self.pixels(image)))
        decoder = self.model.text_decoder
        if self.tree is not None:
            scores, numbers, _ = likeliest(decoder, states, mask, self.tree, len(self.candidates))
            chances = zip(scores[0].softmax(-1).tolist(), numbers[0].tolist(), strict=True)
            return [(self.candidates[number], chance) for chance, number in chances][:top]
        ends = {"cls_id": self.tokenizer.cls_id, "sep_id": self.tokenizer.sep_id}
        found, scores = all_beams(decoder, states, mask, beams=top, max_tokens=self.longest, **ends)
        written: dict[str, float] = {}
        for tokens, score in zip(found[0], scores[0].exp().tolist(), strict=True):
            if score > 0:
                text = self.tokenizer.decode(tokens)
                written[text] = written.get(text, 0.0) + score
        return sorted(written.items(), key=lambda answer: -answer[1])

    @torch.inference_mode()
    def log_probability(self, image: Image.Image, question: str) -> float:
        """That of the likeliest candidate, natural logarithm; M2I2Error where there are no candidates."""
        if self.tree is None:
            raise M2I2Error("There are no candidates to weigh; name at least one answer.")
        ids, mask = (t.to(self.device) for t in pad_rows([self.question_tokens(question)], self.tokenizer.pad_id))
        states = self.model.encode_question(ids, mask, self.model.encode_image(self.pixels(image)))
        scores, _, _ = likeliest(self.model.text_decoder, states, mask, self.tree, 1)
        return float(scores[0, 0])

    def explain(self, image: Image.Image, question: str, answer: str, layer: int | None = None, token: int | None = None) -> Cam:
        """Where ``answer`` comes from: `gradcam` of it, or of its token number ``token``."""
        ids = torch.tensor([self.question_tokens(question)], device=self.device)
        answer_ids = torch.tensor([self.answer_tokens(answer)[:-1]], device=self.device)
        return gradcam(self.model, self.pixels(image), ids, answer_ids, layer, token)
