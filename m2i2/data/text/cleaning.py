"""Clean text: captions, questions and answers as the official code writes them, and our form, which loses nothing.

``official`` reproduces the published numbers, habits included: an answer is trained in another form than it is scored in
('xray' and 'x ray'), candidates are ranked as the data spells them, which is neither, and numbers, articles and signs are
cleaned away, so that 'ER+' equals 'ER-' and 'A' is an empty text. ``fixed`` has one form, in which answers are trained,
ranked and scored. It keeps every letter, digit and sign; only case, accents, spaces and the full stop at the end go. The
remark "? - open" is cut from questions like its siblings (the official code assigns the result to a dead variable), and
numbers in questions keep their points. ``fixed-0.1`` is what version 0.1 called ``fixed``; its runs go on with it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

Normalisation = Literal["official", "fixed", "fixed-0.1"]

TEST_WORDS = 50
"""Longest question at test time, words (official)."""

_DIGITS = {
    word: str(i) for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_DIGITS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_CAPTION_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")
_REMARKS = ("? -yes/no", "? -open", "? - open")
"""Of them the official code cuts the first two."""
_MARK_OUTSIDE_NUMBER = re.compile(r"[.,](?!\d)")
_ACCENTS = re.compile(r"(?<=[^\W\d_])[\u0300-\u036f]+")
"""Combining marks behind a letter: not those of a sign, which change what it means (U+2260 is an equals sign with a stroke)."""
_X_RAY = re.compile(r"\bx\s*[-\u2010\u2011]?\s*ray")
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef\U0002f800-\U0002fa1f]")
"""Characters that a BERT tokenizer takes one by one."""
_ENDS = " .,;\u3002\uff0c\uff1b"


def clean_caption(caption: str, max_words: int = 30) -> str:
    """A caption in lower case without punctuation, cut to ``max_words``."""
    caption = _CAPTION_PUNCTUATION.sub("", caption.lower()).replace("-", " ").replace("/", " ")
    caption = re.sub(r"\s{2,}", " ", caption.replace("<person>", "person")).rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:max_words])


def clean_question(question: str, max_words: int = 30, normalisation: Normalisation = "official") -> str:
    """A question in lower case without its remark and its punctuation, cut to ``max_words`` (50 at test time)."""
    text = question.lower()
    for remark in _REMARKS[:2] if normalisation == "official" else _REMARKS:
        text = text.replace(remark, "")
    if normalisation == "fixed":
        text = _MARK_OUTSIDE_NUMBER.sub("", text.replace("?", "").replace("'s", " 's").replace("x ray", "x-ray"))
        return " ".join((text.split() or question.split())[:max_words])
    for old, new in ((",", ""), ("?", ""), ("'s", " 's"), ("...", ""), ("x ray", "x-ray"), (".", "")):
        text = text.replace(old, new)
    return " ".join(text.rstrip(" ").split(" ")[:max_words])


def scored_answer(answer: str, normalisation: Normalisation = "official") -> str:
    """The form in which an answer, given or true, is compared.

    Officially without articles and punctuation, with digits for number words; fixed: the form in which it is trained.
    """
    if normalisation == "fixed":
        return _one_form(answer)
    text = answer
    for mark in _PUNCTUATION:
        stands_apart = mark + " " in answer or " " + mark in answer or _COMMA_IN_NUMBER.search(answer)
        text = text.replace(mark, "" if stands_apart else " ")
    text = _PERIOD.sub("", text, count=32)  # the official call passes re.UNICODE, 32, as the count
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    text = " ".join(word for word in words if word not in _ARTICLES)
    return text if normalisation == "official" else _official_target(text)


def clean_answer(answer: str, normalisation: Normalisation = "official") -> str:
    """The form in which an answer is trained."""
    scored = scored_answer(answer, normalisation)
    return scored if normalisation == "fixed" else _official_target(scored)


def ranked_answer(answer: str, normalisation: Normalisation = "official") -> str:
    """The form in which a ranking scores a candidate: officially as it is given, fixed as it is trained."""
    return clean_answer(answer, normalisation) if normalisation == "fixed" else answer


def candidate_answers(answers: Iterable[str], normalisation: Normalisation = "official") -> tuple[str, ...]:
    """The answers that a ranking chooses from, in the order of their first appearance.

    Officially each spelling in lower case (517 for all of VQA-RAD). Fixed: one for each form, in its most frequent
    spelling; an empty answer cannot be given.
    """
    if normalisation != "fixed":
        return tuple(dict.fromkeys(answer.strip().lower() for answer in answers))
    spellings: dict[str, Counter[str]] = {}
    for answer in answers:
        spellings.setdefault(scored_answer(answer, "fixed"), Counter())[" ".join(answer.split())] += 1
    return tuple(counts.most_common(1)[0][0] for form, counts in spellings.items() if form)


def same_spelling(text: str) -> str:
    """A text as it is compared where only case and spaces do not count."""
    return "".join(text.lower().split())


def _official_target(text: str) -> str:
    return text.replace(",", "").replace("x ray", "xray")


def _one_form(answer: str) -> str:
    """Words and signs in lower case, a space between any two: the text that a BERT tokenizer's tokens decode to.

    An uncased BERT tokenizer takes accents away, and none keeps spaces beside a sign; with either, what beam search writes
    could not equal what was trained. Never empty for a text that is not.
    """
    text = _ACCENTS.sub("", unicodedata.normalize("NFD", answer.lower()))
    text = _X_RAY.sub("xray", unicodedata.normalize("NFC", text))
    text = " ".join(pieces(text))
    return text.rstrip(_ENDS) or text


def pieces(text: str) -> Iterator[str]:
    """Words (letters, digits and what combines with them), and each sign and CJK character by itself."""
    word = ""
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf":  # invisible; BERT tokenizers drop it
            continue
        if (character.isalnum() or kind[0] == "M") and not _CJK.match(character):
            word += character
            continue
        if word:
            yield word
        word = ""
        if not character.isspace() and kind != "Cc":
            yield character
    if word:
        yield word
