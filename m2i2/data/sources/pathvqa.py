"""PathVQA: questions about pathology images, in flat pickles of plain containers or in JSON."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import Row, by_image
from m2i2.data.sources.pickles import plain_pickle
from m2i2.data.sources.reading import find_image, is_closed, objects, text
from m2i2.errors import M2I2Error


class PathVqa:
    """``qas/{train,val,test}_vqa.pkl`` (or ``.json``) and ``images/{train,val,test}/{img_id}.jpg``."""

    name = "pathvqa"
    kind: Kind = "vqa"

    def __init__(self, path: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path = path

    def __iter__(self) -> Iterator[ImageRecord]:
        for split in ("train", "val", "test"):
            yield from by_image(split, self._questions(split))

    def _questions(self, split: str) -> Iterator[Row]:
        path = self._path / "qas" / f"{split}_vqa.json"
        records = objects(path) if path.exists() else self._pickled(path := path.with_suffix(".pkl"))
        for number, record in records:
            name, labels = text(record, "img_id", path, number), record.get("label")
            if not isinstance(labels, dict) or len(labels) != 1:
                raise M2I2Error(f"{path}, record {number}: 'label' must be an object of one answer, it is {type(labels).__name__}.")
            question = Question(
                id=text(record, "question_id", path, number),
                question=text(record, "sent", path, number),
                answer=text({"label": next(iter(labels))}, "label", path, number),
                closed=is_closed(record, path, number),
                metadata={"question_type": text(record, "question_type", path, number)},
            )
            yield name, find_image(self._path / "images" / split, name), question

    @staticmethod
    def _pickled(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        records = plain_pickle(path)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise M2I2Error(f"{path} must hold a list of records.")
        yield from enumerate(records)
