"""Answers of any system to questions that are at hand: JSON Lines of question id and answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2i2.data.records import Question
from m2i2.errors import M2I2Error, shown
from m2i2.files import MOST_LINES, parse_json, read_bytes

_IDS = ("id", "question_id", "qid")
_ANSWERS = ("prediction", "response", "text", "answer")
"""The first of them that a line has is the answer: our own lines hold the true one as ``answer`` beside ``prediction``."""
Key = tuple[str, str]
"""Image and question id."""


@dataclass(frozen=True)
class Imported:
    """What a system answered."""

    answers: dict[Key, str]
    """Of every question that is at hand; an empty text where the file has no answer."""
    unanswered: int
    others: int
    """Lines about questions that are not at hand."""


def read_answers(path: Path, asked: Mapping[Key, Question]) -> Imported:
    """The answers of a file to the questions ``asked``.

    A line is {"id": ..., "prediction": ...}, or names them as LLaVA-Med does, {"question_id": ..., "text": ...}; "image" tells
    apart questions that share an id. M2I2Error names the line that is none, or that answers a question again, and where no
    line is about these questions.
    """
    by_id: dict[str, list[Key]] = {}
    for key in asked:
        by_id.setdefault(key[1], []).append(key)
    found: dict[Key, tuple[int, str]] = {}
    others = 0
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        keys = by_id.get(_text(row, _IDS, where), [])
        if "image" in row:
            keys = [key for key in keys if key[0] == str(row["image"])]
        if not keys:
            others += 1
            continue
        if len(keys) > 1:
            raise M2I2Error(f'{where}: {len(keys)} questions have the id {shown(keys[0][1])}; add "image": {shown(keys[0][0])}.')
        if keys[0] in found:
            raise M2I2Error(
                f"{where}: the question {shown(keys[0][1])} is answered again, first in line {found[keys[0]][0]}; keep one answer."
            )
        found[keys[0]] = number, _text(row, _ANSWERS, where)
    if not found:
        known = ", ".join(shown(key[1]) for key in list(asked)[:3])
        raise M2I2Error(
            f"{path}: none of its {others} lines is about these {len(asked)} questions, whose ids are {known} ...; write one line "
            f'{{"id": ID, "prediction": ANSWER}} for each.'
        )
    answers = {key: found[key][1] if key in found else "" for key in asked}
    return Imported(answers, len(asked) - len(found), others)


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        lines = read_bytes(path, MOST_LINES).split(b"\n")
    except OSError as e:
        raise M2I2Error(f"Cannot read the answers {path}: {e.strerror}. Name a file of JSON Lines.") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as e:
            raise M2I2Error(f'{path}, line {number} is not valid JSON ({e}); write {{"id": ID, "prediction": ANSWER}}.') from e
        if not isinstance(row, dict):
            raise M2I2Error(f'{path}, line {number} is {shown(row)}, no object; write {{"id": ID, "prediction": ANSWER}}.')
        yield number, row


def _text(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first field of ``names`` that the line has, as a text; a number is one too."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise M2I2Error(
            f"{where} has none of the fields {', '.join(names)}; it has {', '.join(map(shown, row))}. Add {names[0]!r}."
        )
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise M2I2Error(f"{where}: {name!r} is {shown(value)}; write it as one text.")
    return str(value)
