"""Clean text: captions, questions and answers as the official code writes them, and our fix of what it gets wrong.

``official`` reproduces the published numbers. ``fixed`` differs in two points: an answer is scored in the form in which
it was trained (the official code trains 'xray' and scores 'x ray', so such answers can never be right), and the remark
"? - open" is cut from questions like its siblings (the official code assigns the result to a dead variable).
"""

import re
from typing import Literal

Normalisation = Literal["official", "fixed"]

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
_REMARKS = {"official": ("? -yes/no", "? -open"), "fixed": ("? -yes/no", "? -open", "? - open")}


def clean_caption(caption: str, max_words: int = 30) -> str:
    """A caption in lower case without punctuation, cut to ``max_words``."""
    caption = _CAPTION_PUNCTUATION.sub("", caption.lower()).replace("-", " ").replace("/", " ")
    caption = re.sub(r"\s{2,}", " ", caption.replace("<person>", "person")).rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:max_words])


def clean_question(question: str, max_words: int = 30, normalisation: Normalisation = "official") -> str:
    """A question in lower case without its remark and its punctuation, cut to ``max_words`` (50 at test time)."""
    question = question.lower()
    for remark in _REMARKS[normalisation]:
        question = question.replace(remark, "")
    for old, new in ((",", ""), ("?", ""), ("'s", " 's"), ("...", ""), ("x ray", "x-ray"), (".", "")):
        question = question.replace(old, new)
    return " ".join(question.rstrip(" ").split(" ")[:max_words])


def scored_answer(answer: str, normalisation: Normalisation = "official") -> str:
    """The form in which an answer, given or true, is compared: no articles, digits for number words, no punctuation."""
    text = answer
    for mark in _PUNCTUATION:
        stands_apart = mark + " " in answer or " " + mark in answer or _COMMA_IN_NUMBER.search(answer)
        text = text.replace(mark, "" if stands_apart else " ")
    text = _PERIOD.sub("", text, count=32)  # the official call passes re.UNICODE, 32, as the count
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    text = " ".join(word for word in words if word not in _ARTICLES)
    return _trained(text) if normalisation == "fixed" else text


def clean_answer(answer: str, normalisation: Normalisation = "official") -> str:
    """The form in which an answer is trained."""
    return _trained(scored_answer(answer, normalisation))


def _trained(text: str) -> str:
    return text.replace(",", "").replace("x ray", "xray")
