"""Questions of your own in JSON, JSON Lines, CSV or TSV: one record a question."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import Row, by_image
from m2i2.data.sources.reading import CLOSED_FROM_ANSWER, find_image, image_name, text, told_closed, yes_or_no
from m2i2.data.sources.rewrites import link_frames
from m2i2.data.sources.tables import OwnTable, one_text
from m2i2.data.sources.vocabulary import split_name
from m2i2.errors import M2I2Error

_METADATA = ("question_type", "phrase_type", "modality", "organ", "language")


class QuestionJson:
    """Records of ``image`` (a path), ``question`` and ``answer``; where there are, ``id``, ``split``, ``answer_type`` and more.

    Where ``answer_type`` (CLOSED or OPEN) says nothing, a question counts as closed if its answer is yes or no, which is
    told. A question without a text or an answer is listed with the rejects.
    """

    name = "json"
    kind: Kind = "vqa"

    def __init__(self, path: Path, image_root: Path | None = None, split: str = "train", columns: str = "") -> None:
        """Image paths start at ``image_root``, by default at the file's folder; ``split`` is for records that name none.

        ``columns``: "answer=label,image=scan", where the file uses other names.
        """
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._table = OwnTable(path, ("image", "question", "answer"), columns, self.notes)
        self._path, self._root, self._split = path, Path(image_root or path.parent), split_name(split, "--split")

    def __iter__(self) -> Iterator[ImageRecord]:
        self.notes.clear()
        splits: dict[str, list[Row]] = {}
        for number, record in self._table:
            told, where = record.get("split"), f"{self._path}, record {number}"
            split = self._split if told is None else split_name(text(record, "split", self._path, number), where)
            splits.setdefault(split, []).append(self._row(record, number))
        for split, rows in link_frames(splits, self.notes).items():
            yield from by_image(split, rows)

    def _row(self, record: dict[str, Any], number: int) -> Row:
        record = {ours: one_text(value) for ours, value in record.items()}
        if isinstance(record["image"], list):
            raise M2I2Error(f"{self._path}, record {number}: it has {len(record['image'])} images; a question has one.")
        name = image_name(self._root, text(record, "image", self._path, number))
        key = text(record, "question_id", self._path, number) if record.get("question_id") is not None else f"record-{number}"
        path = find_image(self._root, name)
        for field in ("question", "answer"):
            value = record[field]
            if value is None or (isinstance(value, str) and not value.strip()):
                return name, path, (key, f"empty {field}")
        answer = text(record, "answer", self._path, number)
        metadata = {field: text(record, field, self._path, number) for field in _METADATA if record.get(field) is not None}
        closed = told_closed(record, self._path, number)
        if closed is None:
            self.notes[CLOSED_FROM_ANSWER] += 1
            metadata["closed_from"] = "answer"
        question = Question(
            id=key,
            question=text(record, "question", self._path, number),
            answer=answer,
            closed=yes_or_no(answer) if closed is None else closed,
            metadata=metadata,
        )
        return name, path, question
