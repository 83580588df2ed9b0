"""SLAKE: questions in English and Chinese about CT, MRI and X-ray images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import Row, by_image
from m2i2.data.sources.reading import find_image, is_closed, objects, text, text_or_empty
from m2i2.errors import M2I2Error

_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_METADATA = {
    "content_type": "question_type",
    "base_type": "base_type",
    "modality": "modality",
    "location": "organ",
    "q_lang": "language",
    "img_id": "img_id",
}


class Slake:
    """``train.json``, ``validate.json``, ``test.json`` and ``imgs/xmlabN/source.jpg``."""

    name = "slake"
    kind: Kind = "vqa"

    def __init__(self, path: Path, language: str = "en") -> None:
        """``language``: en (the paper's), zh or all."""
        if language not in ("en", "zh", "all"):
            raise M2I2Error(f"--language {language!r} must be en, zh or all.")
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path, self._language = path, language

    def __iter__(self) -> Iterator[ImageRecord]:
        self.left_out.clear()
        for file, split in _SPLITS.items():
            yield from by_image(split, self._questions(self._path / f"{file}.json"))

    def _questions(self, path: Path) -> Iterator[Row]:
        for number, record in objects(path):
            if self._language not in ("all", text(record, "q_lang", path, number)):
                self.left_out["other language"] += 1
                continue
            name = text(record, "img_name", path, number)
            question = Question(
                id=text(record, "qid", path, number),
                question=text(record, "question", path, number),
                answer=text(record, "answer", path, number),
                closed=is_closed(record, path, number),
                metadata={ours: text_or_empty(record, theirs, path, number) for theirs, ours in _METADATA.items()},
            )
            yield name, find_image(self._path / "imgs", name), question
