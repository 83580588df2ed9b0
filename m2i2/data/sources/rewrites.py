"""VQA-RAD's templated rewrites ("frames") and the records that they were made from, linked by their ids.

In the files of MEVF and M2I2, and in tables made of them, the id of a frame follows that of its record, which has the same
image and the same answer. A frame whose record is in the test set must not be trained on (`m2i2.data.loading.clean`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from m2i2.data.records import Question
from m2i2.data.sources.grouping import Row
from m2i2.errors import M2I2Error

UNLINKED = (
    "framed question of which the ids do not tell the record it was made from: the protocol clean refuses this data, because it "
    "cannot know the rewrites of test questions"
)
UNMARKED = (
    "question about an image of VQA-RAD without phrase_type: the protocol clean cannot know which training questions are rewrites "
    "of test questions; build from the files of the publication (vqa-rad)"
)
_VQA_RAD = re.compile(r"(.*/)?synpic\d+(\.\w+)?")


def link_frames(splits: Mapping[str, Sequence[Row]], notes: Counter[str]) -> dict[str, list[Row]]:
    """The rows of every split, frames with the kind of their record in ``framed_from`` and its id in ``origin_id``.

    ``phrase_type`` loses the prefix that the publication gives test questions. M2I2Error where training holds such ones.
    """
    written: dict[str, tuple[str, str, str]] = {}
    for split, rows in splits.items():
        for name, _, question in rows:
            kind = question.metadata.get("phrase_type", "") if isinstance(question, Question) else "frame"
            if isinstance(question, Question) and kind != "frame":
                prefix = "test_" if split == "test" else ""
                written[question.id] = (prefix + kind.removeprefix("test_"), name, _plain(question.answer))
    return {split: [_linked(row, split, written, notes) for row in rows] for split, rows in splits.items()}


def _linked(row: Row, split: str, written: Mapping[str, tuple[str, str, str]], notes: Counter[str]) -> Row:
    name, path, question = row
    if not isinstance(question, Question):
        return row
    kind = question.metadata.get("phrase_type")
    if kind is None:
        notes.update({UNMARKED: 1} if _VQA_RAD.fullmatch(name) else {})
        return row
    if kind.startswith("test_"):
        if split == "train":
            raise M2I2Error(
                f"The question {question.id!r} is in the split train, but its phrase_type {kind!r} says that VQA-RAD has "
                f"it in its test set. Give those questions the split test."
            )
        return name, path, replace(question, metadata={**question.metadata, "phrase_type": kind.removeprefix("test_")})
    if kind != "frame" or "framed_from" in question.metadata:
        return row
    before = str(int(question.id) - 1) if question.id.isdecimal() and len(question.id) < 20 else ""
    origin, *about = written.get(before, ("", "", ""))
    if about != [name, _plain(question.answer)]:
        notes[UNLINKED] += 1
        return row
    return name, path, replace(question, metadata={**question.metadata, "framed_from": origin, "origin_id": before})


def _plain(answer: str) -> str:
    return answer.strip().lower()
