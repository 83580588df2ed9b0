"""Questions about images: the likeliest answers, and where in the image they come from."""

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


def require_words(question: str, normalisation: Normalisation) -> str:
    """A question after its clean-up; M2I2Error for one without words."""
    text = clean_question(question, TEST_WORDS, normalisation).strip()
    if not text:
        raise M2I2Error("The question is empty; ask something about the image.")
    return text


class Answerer:
    """A model with its tokenizer, asked one question or many. It keeps no state between questions: threads may share it."""

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
        return self.tokenizer.encode(require_words(question, self.normalisation), self.model.text.positions)

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image -> [1, 3, H, W] as the model takes it."""
        return normalise(self.transform.of_image(image)[None].to(self.device)).to(next(self.model.parameters()).dtype)

    def answer(self, image: Image.Image, question: str, top: int = 5) -> list[Answer]:
        """At most ``top`` answers, likeliest first."""
        return self.answer_all([image], [question], top)[0]

    def answer_all(
        self, images: Sequence[Image.Image], questions: Sequence[str], top: int = 5, batch: int = 16
    ) -> list[list[Answer]]:
        """The answers to question i about image i, ``batch`` questions at a time. An image object that comes again in a batch is
        encoded once."""
        rows = [self.question_tokens(question) for question in questions]
        found: list[list[Answer]] = []
        for start in range(0, len(rows), batch):
            asked = images[start : start + batch]
            once = {id(image): image for image in asked}
            places = {key: place for place, key in enumerate(once)}
            pixels = torch.cat([self.pixels(image) for image in once.values()])
            ids, mask = pad_rows(rows[start : start + batch], self.tokenizer.pad_id)
            image_of = torch.tensor([places[id(image)] for image in asked], device=self.device)
            found += self.answer_tensors(pixels, ids.to(self.device), mask.to(self.device), top, image_of)
        return found

    @torch.inference_mode()
    def answer_tensors(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, top: int = 5, image_of: Tensor | None = None
    ) -> list[list[Answer]]:
        """The answers to questions [Q, L] about normalised images [B, 3, H, W].

        ``image_of``: [Q], which image each question is about; default: question i is about image i.
        """
        states = self.model.encode_question(ids, mask, self.model.encode_image(pixels), image_of)
        decoder = self.model.text_decoder
        if self.tree is not None:
            scores, numbers, _ = likeliest(decoder, states, mask, self.tree, len(self.candidates))
            rows = zip(scores.softmax(-1).tolist(), numbers.tolist(), strict=True)
            return [[(self.candidates[n], chance) for chance, n in zip(*row, strict=True)][:top] for row in rows]
        ends = {"cls_id": self.tokenizer.cls_id, "sep_id": self.tokenizer.sep_id}
        found, scores = all_beams(decoder, states, mask, beams=top, max_tokens=self.longest, **ends)
        return [self._written(*row) for row in zip(found, scores.exp().tolist(), strict=True)]

    def _written(self, beams: list[list[int]], chances: list[float]) -> list[Answer]:
        """The texts of beams, likeliest first; beams that are one text count together."""
        written: dict[str, float] = {}
        for tokens, chance in zip(beams, chances, strict=True):
            if chance > 0:
                text = self.tokenizer.decode(tokens)
                written[text] = written.get(text, 0.0) + chance
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
