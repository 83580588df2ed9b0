"""Answers to every question of a split, several at a time."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from m2i2.data.images.transforms import normalise
from m2i2.data.loading.padding import pad_rows
from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.records import Question
from m2i2.data.shards.split import Sample, ShardSplit
from m2i2.data.text.cleaning import TEST_WORDS, Normalisation, clean_question, ranked_answer, scored_answer
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.inference.generation import LONGEST, beam_search
from m2i2.inference.ranking import CandidateTree, likeliest, rank_official
from m2i2.inference.substitution import Sight, own
from m2i2.models.vqa import VQAModel
from m2i2.precision import autocast
from m2i2.terminal import say

TOP = 5
"""Answers that are kept of each question."""


@dataclass(frozen=True)
class Prediction:
    """What the model answered: the best first, with the probability that it writes them (rank-official: among its k)."""

    key: str
    question: Question
    best: tuple[tuple[str, float], ...]
    generated: str | None = None
    """What beam search wrote beside a ranking."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How answers are found."""

    mode: str
    """rank (exactly, all candidates), rank-official (top k by first token), or generate."""
    k: int = 128
    beams: int = 3
    max_tokens: int = LONGEST
    """Longest answer that beam search writes, tokens."""
    normalisation: Normalisation = "official"
    also_generate: bool = False
    """Let beam search answer too where answers are ranked."""


class Predictor:
    """Asks a model the questions of a split, several at a time; an image is encoded once for its questions in a batch."""

    def __init__(
        self,
        model: VQAModel,
        tokenizer: Tokenizer,
        candidates: Sequence[str],
        method: Method,
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 16,
    ) -> None:
        self.model = model.to(device).eval()
        self.tokenizer, self.candidates, self.method = tokenizer, tuple(candidates), method
        self.device, self.dtype, self.batch = device, dtype, batch
        self.nodes_read: list[int] = []
        """Of each question that was ranked: nodes of the tree of candidates that were read."""
        form = method.normalisation
        self._spelled = {scored_answer(answer, form): answer for answer in candidates} if form == "fixed" else {}
        if candidates:
            tokens = [tokenizer.encode_answer(ranked_answer(answer, form), model.text.positions) for answer in candidates]
            self.tree = CandidateTree.build(tokens).to(device)
            self.ids, self.ids_mask = (t.to(device) for t in pad_rows(tokens, tokenizer.pad_id))

    def predict(
        self, split: ShardSplit | SelectedSplit, progress: bool = True, sight: Sight | None = None, what: str = "questions"
    ) -> Iterator[Prediction]:
        """Every question of ``split``, in the order of its shards; with ``sight`` those that it names, as it shows them."""
        console = Console(stderr=True)
        sight = own(range(len(split)), self.model.vision.image_size) if sight is None else sight
        total = len(sight.items)
        starts = range(0, total, self.batch)
        steps = track(starts, what, console=console) if progress and console.is_terminal else starts
        for start in steps:
            if progress and not console.is_terminal and start and start % (20 * self.batch) == 0:
                say(f"{start} of {total} {what}", file=sys.stderr, flush=True)
            items = sight.items[start : start + self.batch]
            yield from self._ask(sight, list(items), [split.read(item) for item in items])

    def reading(self) -> dict[str, float]:
        """How much of the tree of candidates was read: its nodes, and the mean over the questions."""
        return {"nodes": len(self.tree.ids), "read_per_question": round(sum(self.nodes_read) / len(self.nodes_read), 1)}

    @torch.inference_mode()
    def _ask(self, sight: Sight, items: list[int], samples: list[Sample]) -> Iterator[Prediction]:
        images: dict[str, int] = {}
        pixels, numbers = [], []
        for item, sample in zip(items, samples, strict=True):
            name = sight.name(item, sample)
            if name not in images:
                images[name] = len(images)
                pixels.append(sight.pixels(item, sample))
            numbers.append(images[name])
        image_of = torch.tensor(numbers, device=self.device)
        questions = [sample.question for sample in samples if sample.question is not None]
        texts = [clean_question(q.question, TEST_WORDS, self.method.normalisation) for q in questions]
        rows = [self.tokenizer.encode(text, self.model.text.positions) for text in texts]
        ids, mask = (t.to(self.device) for t in pad_rows(rows, self.tokenizer.pad_id))
        with autocast(self.device, self.dtype):
            keys_values = self.model.encode_image(normalise(torch.stack(pixels).to(self.device)))
            states = self.model.encode_question(ids, mask, keys_values, image_of)
            answers = self._answer(states, mask)
            written: list[str | None] = [None] * len(samples)
            if self.method.also_generate and self.method.mode != "generate":
                written = [best[0][0] for best in self._generate(states, mask)]
        for sample, question, best, generated in zip(samples, questions, answers, written, strict=True):
            yield Prediction(sample.key, question, best, generated)

    def _generate(self, states: Tensor, mask: Tensor) -> list[tuple[tuple[str, float], ...]]:
        ids = {"cls_id": self.tokenizer.cls_id, "sep_id": self.tokenizer.sep_id}
        limits = {"beams": self.method.beams, "max_tokens": self.method.max_tokens}
        tokens, scores = beam_search(self.model.text_decoder, states, mask, **limits, **ids)
        return [((self._written(t), p),) for t, p in zip(tokens, scores.exp().tolist(), strict=True)]

    def _written(self, tokens: list[int]) -> str:
        """What beam search has written; in the form ``fixed`` as the data spells it, where it is one of the candidates."""
        text = self.tokenizer.decode(tokens)
        return self._spelled.get(scored_answer(text, self.method.normalisation), text) if self._spelled else text

    def _answer(self, states: Tensor, mask: Tensor) -> list[tuple[tuple[str, float], ...]]:
        decoder, names = self.model.text_decoder, self.candidates
        if self.method.mode == "generate":
            return self._generate(states, mask)
        if self.method.mode == "rank-official":
            best, chances = rank_official(decoder, states, mask, self.ids, self.ids_mask, self.method.k)
        else:
            scores, best, read = likeliest(decoder, states, mask, self.tree, TOP)
            self.nodes_read += read.tolist()
            chances = scores.exp()
        rows = zip(best[:, :TOP].tolist(), chances[:, :TOP].tolist(), strict=True)
        return [tuple((names[i], p) for i, p in zip(numbers, values, strict=True)) for numbers, values in rows]
