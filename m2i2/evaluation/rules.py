"""The rules by which systems in use score an answer, as functions of prediction, true answer and kind of question.

Each is written again from its source, which it names. None asks a language model to judge. Contractions ("dont" as "don't"),
which LLaVA-Med's clean-up restores, are not: no answer of VQA-RAD, SLAKE or VQA-Med 2019 has one.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from m2i2.data.text.cleaning import scored_answer
from m2i2.evaluation.scoring import is_correct, token_f1

Score = Callable[[str, str, bool], float | None]
"""(prediction, true answer, closed) -> a score in [0, 1]; None where the system leaves the question out of its mean."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one system scores one answer, and which questions it calls closed."""

    name: str
    about: str
    """What counts as right, in a line."""
    source: str
    score: Score
    closed_by: Literal["data", "answer"] = "data"
    """Closed are the questions that the data marks so, or those whose true answer is yes or no."""


def official(prediction: str, answer: str, closed: bool) -> float:
    """Equality after the official clean-up (articles, number words, punctuation), for every question.

    Source: the official M2I2 code, which scores as VQA 2.0 does.
    """
    return float(is_correct(prediction, answer, "official"))


def clean(prediction: str, answer: str, closed: bool) -> float:
    """Equality in the form ``fixed`` (`m2i2.data.text.cleaning`), which loses no number, article or sign."""
    return float(is_correct(prediction, answer, "fixed"))


def medevalkit(prediction: str, answer: str, closed: bool) -> float:
    """Open: equality in lower case. Closed: the prediction holds exactly one of the letters "yes" and "no", and the true answer.

    Letters, not words: "normal" and "unknown" hold "no". A closed question with another answer: equality without full stops.
    Source: MedEvalKit, ``utils/utils.py`` (judge_judgement, judge_close_end_vqa, judge_open_end_vqa), which lmms-eval's tasks
    ``medevalkit`` repeat. On VQA-RAD and PathVQA closed means that the answer is yes or no, on SLAKE what the data says.
    """
    given, true = extracted(prediction), answer.lower().strip()
    if not closed:
        return float(given == true)
    given = given.replace("\n", "").replace(".", "")
    if true in ("yes", "no"):
        return float(("yes" in given) != ("no" in given) and true in given)
    return float(given == true)


_MARKS = ("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer")


def extracted(prediction: str) -> str:
    r"""What MedEvalKit takes for the answer within a longer text, in lower case: ``\boxed{...}``, ``<answer>...</answer>``, or
    what follows "answer:" and its like; otherwise all of it.
    """
    text = prediction.lower().strip()
    if "\\boxed{" in text:
        return _in_braces(text[text.rindex("\\boxed{") + 7 :]).strip()
    if found := re.search(r"<answer>(.*?)</answer>", text, re.DOTALL):
        return found[1].strip()
    for mark in _MARKS:
        text = text.rpartition(mark)[2]
    return text.strip()


def _in_braces(text: str) -> str:
    """``text`` up to the brace that closes one opened before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place]
    return text


_SIGNS = re.compile(r"[!-/:-@\[-`{-~！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】]")
_SAME = {
    "yes": {"yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"},
    "no": {"nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"},
    "xray": {"x ray"},
}


def lmms_eval(prediction: str, answer: str, closed: bool) -> float:
    """Equality in lower case without brackets and their content and with spaces for signs; yeah, true ... as yes and no.

    Source: lmms-eval, ``lmms_eval/tasks/slake/utils.py`` (normalize_answer), used for every question.
    """
    return float(_without_signs(prediction) == _without_signs(answer))


def _without_signs(text: str) -> str:
    text = re.sub(r"\([^)]*\)|（[^）]*）", " ", text.strip().lower())
    text = " ".join(_SIGNS.sub(" ", text).split())
    return next((word for word, same in _SAME.items() if text in same), text)


def llava_med(prediction: str, answer: str, closed: bool) -> float | None:
    """Open: share of the answer's words that the prediction has (recall). Closed: the true answer is part of the prediction,
    which holds "yes" or "no". A closed question answered with the wrong one of yes and no is left out of the mean (None).

    Source: LLaVA-Med, ``llava/eval/run_eval.py`` and ``eval_metrics/evaluate_metrics.py`` (calculate_f1score): the script adds
    a 1 for a right yes or no and a 0 for a closed answer that holds neither, and nothing for a wrong one.
    """
    given, true = _of_llava_med(prediction), _of_llava_med(answer)
    if not closed:
        return _recall(given, true)
    if "yes" in given or "no" in given:
        return 1.0 if true in given else None
    return 0.0


def llava_med_counted(prediction: str, answer: str, closed: bool) -> float:
    """`llava_med`, with a wrong yes or no counted as wrong, as later scripts that follow it do."""
    return llava_med(prediction, answer, closed) or 0.0


def _of_llava_med(text: str) -> str:
    """Its normalize_word: the official clean-up in lower case, without commas."""
    return scored_answer(text.lower(), "official").replace(",", "")


def _recall(given: str, true: str) -> float:
    """As it is written there: a word of both counts as often as the prediction says it."""
    predicted, wanted = Counter(given.split()), Counter(true.split())
    found = sum(count for word, count in predicted.items() if word in wanted)
    missed = sum(count for word, count in wanted.items() if word not in predicted)
    return found / (found + missed) if found else 0.0


def bleu_1(prediction: str, answer: str, closed: bool) -> float:
    """Clipped precision of single words times the brevity penalty, a full stop being a word.

    Source: Papineni et al., ACL 2002, equations 1 to 3 with N = 1; words as MedEvalKit takes them (``utils/utils.py``, tokenize).
    """
    given, true = (extracted(text).replace(".", " .").split(" ") for text in (prediction, answer))
    shared = (Counter(given) & Counter(true)).total()
    return shared / len(given) * min(1.0, math.exp(1 - len(true) / len(given)))


def f1(prediction: str, answer: str, closed: bool) -> float:
    """F1 of the words after the official clean-up, each counted as often as it occurs. Source: SQuAD (EMNLP 2016), `token_f1`."""
    return token_f1(prediction, answer, "official")


def rouge_l(prediction: str, answer: str, closed: bool) -> float:
    """F1 of the longest common subsequence of words. Source: Lin, ACL workshop 2004, equations 2 to 4 with beta = 1."""
    given, true = extracted(prediction).split(), extracted(answer).split()
    row = [0] * (len(true) + 1)
    for word in given:
        before = row
        row = [0]
        for place, other in enumerate(true):
            row.append(before[place] + 1 if word == other else max(row[-1], before[place + 1]))
    return 2 * row[-1] / (len(given) + len(true)) if given or true else 1.0


RULES = (
    Rule(
        name="official",
        about="equal after the official clean-up",
        source="official M2I2 code (VQA 2.0's clean-up)",
        score=official,
    ),
    Rule(name="clean", about="equal where only case, accents and spaces do not count", source="this project", score=clean),
    Rule(
        name="medevalkit",
        about="closed: the letters of yes or no occur and not those of the other; open: equal in lower case",
        source="MedEvalKit utils/utils.py; lmms-eval tasks/medevalkit",
        score=medevalkit,
        closed_by="answer",
    ),
    Rule(
        name="lmms-eval",
        about="equal without signs and brackets; yeah and true are yes",
        source="lmms-eval tasks/slake/utils.py",
        score=lmms_eval,
    ),
    Rule(
        name="llava-med",
        about="closed: the true answer occurs, a wrong yes or no is left out; open: recall of its words",
        source="LLaVA-Med llava/eval/run_eval.py",
        score=llava_med,
    ),
    Rule(
        name="llava-med, all counted",
        about="the same with nothing left out",
        source="LLaVA-Med, corrected",
        score=llava_med_counted,
    ),
    Rule(name="bleu-1", about="precision of words, short answers penalised", source="ACL 2002; MedEvalKit's words", score=bleu_1),
    Rule(name="token f1", about="F1 of words after the official clean-up", source="SQuAD, EMNLP 2016", score=f1),
    Rule(name="rouge-l", about="F1 of the longest common subsequence of words", source="ACL workshop 2004", score=rouge_l),
)
"""Every rule in use; the first is what the others are compared with."""
