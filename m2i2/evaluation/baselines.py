"""What is possible without the image: the baseline answers reported with every result."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from m2i2.data.records import Question
from m2i2.data.text.cleaning import Normalisation, clean_question, scored_answer


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
