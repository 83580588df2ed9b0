"""Questions of your own in JSON, JSONL, CSV or TSV: one record a question."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import by_image
from m2i2.data.sources.reading import CLOSED_FROM_ANSWER, find_image, records, text, told_closed, yes_or_no
from m2i2.errors import M2I2Error

_METADATA = ("question_type", "phrase_type", "modality", "organ", "language")


class QuestionJson:
    """Records of ``image`` (a path), ``question`` and ``answer``; where there are, ``id``, ``split``, ``answer_type`` and more.

    Without ``answer_type`` (CLOSED or OPEN) a question counts as closed where its answer is yes or no, which is told.
    """

    name = "json"
    kind: Kind = "vqa"

    def __init__(self, path: Path, image_root: Path | None = None, split: str = "train") -> None:
        """Image paths start at ``image_root``, by default at the file's folder; ``split`` is for records that name none."""
        if not path.is_file():
            raise M2I2Error(f"{path} is no JSON, JSONL, CSV or TSV file.")
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path, self._root, self._split = path, Path(image_root or path.parent), split

    def __iter__(self) -> Iterator[ImageRecord]:
        self.notes.clear()
        splits: dict[str, list[tuple[str, Path, Question]]] = {}
        for number, record in records(self._path):
            split = self._split if record.get("split") is None else text(record, "split", self._path, number)
            splits.setdefault(split, []).append(self._row(record, number))
        for split, rows in splits.items():
            yield from by_image(split, rows)

    def _row(self, record: dict[str, Any], number: int) -> tuple[str, Path, Question]:
        name, answer = (text(record, key, self._path, number) for key in ("image", "answer"))
        metadata = {key: text(record, key, self._path, number) for key in _METADATA if record.get(key) is not None}
        closed = told_closed(record, self._path, number)
        if closed is None:
            self.notes[CLOSED_FROM_ANSWER] += 1
            metadata["closed_from"] = "answer"
        question = Question(
            id=text(record, "id", self._path, number) if record.get("id") is not None else f"record-{number}",
            question=text(record, "question", self._path, number),
            answer=answer,
            closed=yes_or_no(answer) if closed is None else closed,
            metadata=metadata,
        )
        return name, find_image(self._root, name), question
