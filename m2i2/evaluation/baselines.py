"""What is possible without the image: the baseline answers reported with every result."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation, clean_question, scored_answer

LABELS = {
    "model": "this model",
    "question_only": "question only (no image)",
    "question_words": "question words (no image)",
    "most_frequent": "most frequent answer",
}
"""What tables call the rows of a view; older evaluations have no ``question_words``."""


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
    """The most probable answer by logistic regression on the words and the pairs of neighbouring words of a question.

    It knows the words, pairs and answers of at least two training questions. Inputs are weighted by TF-IDF and scaled to length
    1; the penalty is that of scikit-learn with C=10.
    """
    asked = [_keys(question, normalisation) for question in train]
    frequent = {answer for answer, count in Counter(answer for _, answer in asked).items() if count > 1}
    counts = Counter(pair for pair in asked if pair[1] in frequent)
    texts, answers = list(dict.fromkeys(text for text, _ in counts)), sorted(frequent)
    if len(answers) < 2:
        return ["".join(answers)] * len(test)
    of = Counter(part for text, _ in asked for part in _parts(text))
    idf = {part: 1 + math.log((1 + len(asked)) / (1 + count)) for part, count in of.items() if count > 1}
    y = torch.zeros(len(texts), len(answers), dtype=torch.float64)
    row, column = ({name: n for n, name in enumerate(names)} for names in (texts, answers))
    for (text, answer), count in counts.items():
        y[row[text], column[answer]] = count
    weights = _regression(_weighted(texts, idf), y, penalty=1 / 20)
    given = torch.sparse.mm(_weighted([_keys(question, normalisation)[0] for question in test], idf), weights)
    return [answers[n] for n in given.argmax(1).tolist()]


def _parts(text: str) -> set[str]:
    words = text.split()
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


def _weighted(texts: Sequence[str], idf: Mapping[str, float]) -> Tensor:
    """TF-IDF of what ``idf`` knows, rows of length 1, and a column of ones; sparse [n, len(idf) + 1], in double precision."""
    column = {part: n for n, part in enumerate(idf)}
    rows, columns, values = [], [], []
    for n, text in enumerate(texts):
        inside = sorted(_parts(text) & idf.keys())
        length = math.sqrt(sum(idf[part] ** 2 for part in inside)) or 1.0
        rows += [n] * (len(inside) + 1)
        columns += [*(column[part] for part in inside), len(idf)]
        values += [*(idf[part] / length for part in inside), 1.0]
    size = (len(texts), len(idf) + 1)
    values_ = torch.tensor(values, dtype=torch.float64)
    return torch.sparse_coo_tensor(torch.tensor([rows, columns]), values_, size, check_invariants=False).coalesce()


def _regression(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Coefficients [inputs, classes] of least summed cross-entropy plus ``penalty`` times their squares, the last row's excepted.

    ``y`` [n, classes] counts how often an input had each class.
    """
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_change=1e-7, history_size=5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(y * F.log_softmax(torch.sparse.mm(x, weights), 1)).sum() + penalty * weights[:-1].square().sum()
        loss = loss / y.sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


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
