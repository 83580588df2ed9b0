"""A decoder that writes one given answer for each question: what a model writes that has learned it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from m2i2.data.records import Question
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.evaluation.reach import Writing
from m2i2.evaluation.scoring import is_correct
from m2i2.inference.generation import beam_search
from m2i2.inference.ranking import CandidateTree, likeliest


class Cache:
    """How many tokens have been read."""

    length = 0

    def reorder(self, rows: Tensor) -> None:
        """Nothing depends on which beam goes on."""


class PerfectDecoder:
    """`AnswerDecoder`'s part that ranking and beam search use; ``states`` [Q, 1, 1] are the questions' numbers."""

    def __init__(self, answers: Sequence[Sequence[int]], vocabulary: int, sep_id: int) -> None:
        self.vocabulary = vocabulary
        longest = max(map(len, answers)) + 1
        self.answers = torch.tensor([[*answer, *[sep_id] * (longest - len(answer))] for answer in answers])

    def start(self, states: Tensor, mask: Tensor) -> Cache:
        self.questions = states[:, 0, 0].long()
        return Cache()

    def read(self, ids: Tensor, cache: Cache, visible: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """[R, t] tokens -> [R, t, 1]: the token that comes next in the question's answer."""
        if positions is None:
            positions = torch.arange(cache.length, cache.length + ids.shape[1]).expand(ids.shape)
        cache.length += ids.shape[1]
        rows = self.questions.repeat_interleave(len(ids) // len(self.questions))
        places = (positions + 1).clamp_max(self.answers.shape[1] - 1)
        return self.answers[rows[:, None], places].float()[..., None]

    def logits(self, states: Tensor) -> Tensor:
        """[..., 1] -> [..., V]: nearly all of the probability on the next token."""
        return torch.zeros(*states.shape[:-1], self.vocabulary).scatter_(-1, states.long(), 40.0)


def given_by_a_perfect_model(
    asked: Sequence[Question], train: Sequence[Question], candidates: Sequence[str], writing: Writing, tokenizer: Tokenizer
) -> tuple[list[str], list[str]]:
    """What ranking and beam search give where the model writes every true answer just as it was trained to.

    Ranking's answers are candidates; beam search's are texts. Short answers are asked first, together: ranking reads twice as
    much of the tree for each token more.
    """
    ranked, written = [""] * len(asked), [""] * len(asked)
    tree = CandidateTree.build([list(writing.ranked(candidate)) for candidate in candidates])
    most = writing.longest(question.answer for question in train)
    order = sorted(range(len(asked)), key=lambda number: len(writing.trained(asked[number].answer)))
    for start in range(0, len(asked), 16):
        part = order[start : start + 16]
        decoder = PerfectDecoder([writing.trained(asked[i].answer) for i in part], tokenizer.size, tokenizer.sep_id)
        states = torch.arange(len(part), dtype=torch.float32)[:, None, None]
        mask = torch.ones(len(part), 1, dtype=torch.long)
        best = likeliest(decoder, states, mask, tree, 1)  # type: ignore[arg-type]
        limits = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "beams": 3, "max_tokens": most}
        texts, _ = beam_search(decoder, states, mask, **limits)  # type: ignore[arg-type]
        for number, chosen, tokens in zip(part, best.numbers[:, 0].tolist(), texts, strict=True):
            ranked[number], written[number] = candidates[chosen], tokenizer.decode(tokens)
    return ranked, written


def right(answers: Sequence[str], asked: Sequence[Question], writing: Writing) -> list[bool]:
    """Which of the answers are scored as right."""
    return [is_correct(answer, q.answer, writing.form) for answer, q in zip(answers, asked, strict=True)]
