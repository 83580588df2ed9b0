"""PathVQA: questions about pathology images, in flat pickles of plain containers or in JSON."""

import pickletools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import by_image
from m2i2.data.sources.reading import find_image, objects, plain_pickle, text
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

    def _questions(self, split: str) -> Iterator[tuple[str, Path, Question]]:
        path = self._path / "qas" / f"{split}_vqa.json"
        records = objects(path) if path.exists() else self._pickled(path := path.with_suffix(".pkl"))
        for number, record in records:
            name, labels = text(record, "img_id", path, number), record.get("label")
            if not isinstance(labels, dict) or len(labels) != 1:
                raise M2I2Error(f"{path}, record {number}: 'label' must be an object of one answer, it is {type(labels).__name__}.")
            question = Question(
                id=text(record, "question_id", path, number),
                question=text(record, "sent", path, number),
                answer=str(next(iter(labels))),
                closed=text(record, "answer_type", path, number).strip() == "yes/no",
                metadata={"question_type": text(record, "question_type", path, number)},
            )
            yield name, find_image(self._path / "images" / split, name), question

    @staticmethod
    def _pickled(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        _check_pickle(path)
        records = plain_pickle(path)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise M2I2Error(f"{path} must hold a list of records.")
        yield from enumerate(records)


_LARGEST_PICKLE = 256 << 20
"""The whole of PathVQA's questions are under 3 MB."""
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "FROZENSET", "EMPTY_SET", "ADDITEMS")
_AMOUNTS = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")
_NAMES = ("GLOBAL", "STACK_GLOBAL", "INST")
"""Opcodes that look up a class: ``plain_pickle`` stops there and says which."""


def _check_pickle(path: Path) -> None:
    """Refuse what would cost memory or time out of proportion, before anything is loaded; classes are ``plain_pickle``'s job.

    A few bytes can ask for a memo of gigabytes, and nested shared tuples as dictionary keys hash for ever.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_PICKLE:
            raise M2I2Error(f"{path} was refused: it has {size} bytes, more than {_LARGEST_PICKLE}. Convert it to JSON.")
        content = path.read_bytes()
        for opcode, argument, place in pickletools.genops(content):
            if opcode.name in _NAMES:
                return
            if opcode.name in _TUPLES:
                raise M2I2Error(f"{path} was refused: it holds {opcode.name} at byte {place}; convert it to JSON.")
            if opcode.name in _AMOUNTS and isinstance(argument, int) and argument > size:
                raise M2I2Error(f"{path} was refused: byte {place} asks for {argument} entries or bytes; download it again.")
    except M2I2Error:
        raise
    except OSError as e:
        raise M2I2Error(f"Cannot read {path}: {e.strerror}. PathVQA needs it, or the same questions as .json.") from e
    except Exception as e:  # a damaged pickle raises almost anything
        raise M2I2Error(f"{path} is no readable pickle ({type(e).__name__}: {e}). Download it again.") from e
