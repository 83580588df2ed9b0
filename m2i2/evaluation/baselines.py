"""What is possible without the image: the baseline answers reported with every result."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation, clean_question, pieces, scored_answer
from m2i2.evaluation.fitting import minimise

LABELS = {
    "model": "this model",
    "question_only": "question only (no image)",
    "question_words": "question words (no image)",
    "most_frequent": "most frequent answer",
}
"""What tables call the rows of a view; older evaluations have no ``question_words``."""
ANSWERS, PARTS = 500, 10_000
"""Most answers, and most words and pairs of words, that `question_words` knows: minutes of one core with 20,000 questions."""


def question_only(train: Iterable[Question], test: Sequence[Question], normalisation: Normalisation = "official") -> list[str]:
    """The most frequent training answer of the same question, else of its first two words, else of all questions."""
    same: dict[str, Counter[str]] = defaultdict(Counter)
    begins: dict[str, Counter[str]] = defaultdict(Counter)
    anything: Counter[str] = Counter()
    for question in train:
        text, answer = _keys(question, normalisation)
        same[text][answer] += 1
        begins[_first_words(text)][answer] += 1
        anything[answer] += 1
    answers = []
    for question in test:
        text, _ = _keys(question, normalisation)
        counts = same.get(text) or begins.get(_first_words(text)) or anything
        answers.append(counts.most_common(1)[0][0] if counts else "")
    return answers


def question_words(train: Iterable[Question], test: Sequence[Question], normalisation: Normalisation = "official") -> list[str]:
    """The most probable answer by logistic regression on the words of a question and its pairs of neighbouring words.

    It knows what occurs in two training questions or more, up to `ANSWERS` answers and `PARTS` words and pairs, the most
    frequent first. A CJK character is a word. Inputs are weighted by TF-IDF and scaled to length 1; the penalty is that of
    scikit-learn with C=10. Where fewer than two answers are known: the most frequent answer.
    """
    asked = [_keys(question, normalisation) for question in train]
    given = Counter(answer for _, answer in asked)
    answers = _known(given, ANSWERS)
    if len(answers) < 2:
        return [min(given, key=lambda answer: (-given[answer], answer), default="")] * len(test)
    counts = Counter(pair for pair in asked if pair[1] in answers)
    seen = Counter(part for text, _ in asked for part in _parts(text))
    idf = {part: 1 + math.log((1 + len(asked)) / (1 + seen[part])) for part in _known(seen, PARTS)}
    pairs = sorted(counts)
    y = torch.tensor([answers[answer] for _, answer in pairs])
    coefficients = _regression(_weighted([text for text, _ in pairs], idf), y, torch.tensor([counts[pair] for pair in pairs]))
    scores = torch.sparse.mm(_weighted([_keys(question, normalisation)[0] for question in test], idf), coefficients)
    names = list(answers)
    return [names[n] for n in scores.argmax(1).tolist()]


def _known(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """What was counted twice or more, at most ``most`` of it, the most frequent first, with its place."""
    order = sorted((name for name, count in counts.items() if count > 1), key=lambda name: (-counts[name], name))
    return {name: place for place, name in enumerate(order[:most])}


def _parts(text: str) -> set[str]:
    words = " ".join(pieces(text)).split()
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


def _weighted(texts: Sequence[str], idf: Mapping[str, float]) -> Tensor:
    """TF-IDF of what ``idf`` knows, rows of length 1, and a column of ones; sparse [n, len(idf) + 1], in double precision."""
    column = {part: place for place, part in enumerate(idf)}
    rows, columns, values = [], [], []
    for n, text in enumerate(texts):
        inside = sorted(_parts(text) & idf.keys())
        length = math.sqrt(sum(idf[part] ** 2 for part in inside))
        rows += [n] * (len(inside) + 1)
        columns += [*(column[part] for part in inside), len(idf)]
        values += [*(idf[part] / length for part in inside), 1.0]
    places, size = torch.tensor([rows, columns]).reshape(2, -1), (len(texts), len(idf) + 1)
    return torch.sparse_coo_tensor(places, torch.tensor(values, dtype=torch.float64), size, check_invariants=False).coalesce()


def _regression(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Coefficients [inputs, classes] of least cross-entropy plus a twentieth of their squares, the last row's excepted.

    Row n of ``x`` [n, inputs] had the class ``y`` [n] ``counts`` [n] times.
    """
    coefficients = torch.zeros(x.shape[1], int(y.max()) + 1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        losses = F.cross_entropy(torch.sparse.mm(x, coefficients), y, reduction="none")
        return ((losses * counts).sum() + coefficients[:-1].square().sum() / 20) / counts.sum()

    minimise(loss, [coefficients], max_iter=200, tolerance_change=1e-7, history_size=5)
    return coefficients.detach()


def most_frequent(train: Iterable[Question], test: Sequence[Question], normalisation: Normalisation = "official") -> list[str]:
    """The most frequent training answer of closed and of open questions."""
    counts: dict[bool, Counter[str]] = defaultdict(Counter)
    for question in train:
        counts[question.closed][_keys(question, normalisation)[1]] += 1
    return [counts[q.closed].most_common(1)[0][0] if counts[q.closed] else "" for q in test]


def _keys(question: Question, normalisation: Normalisation) -> tuple[str, str]:
    return clean_question(question.question, 50, normalisation), scored_answer(question.answer, normalisation)


def _first_words(text: str) -> str:
    return " ".join(text.split()[:2])


BASELINES: Mapping[str, Callable[[Sequence[Question], Sequence[Question], Normalisation], list[str]]] = {
    "question_only": question_only,
    "question_words": question_words,
    "most_frequent": most_frequent,
}
"""In the order of the tables."""
