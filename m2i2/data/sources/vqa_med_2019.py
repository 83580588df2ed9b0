"""VQA-Med 2019 (ImageCLEF): questions on modality, plane, organ system and abnormality of MedPix's images.

Source: Ben Abacha et al., "VQA-Med: Overview of the Medical Visual Question Answering Task at ImageCLEF 2019", CLEF 2019.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import Row, by_image
from m2i2.data.sources.question_json import QuestionJson
from m2i2.data.sources.reading import find_image, yes_or_no
from m2i2.errors import M2I2Error
from m2i2.files import MOST_LINES, read_bytes

CATEGORIES = {"C1_Modality": "modality", "C2_Plane": "plane", "C3_Organ": "organ", "C4_Abnormality": "abnormality"}
"""The files of each category, and what a question's type is called; the test file names the type in every line."""
_TEST = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
_IMAGES = {"train": "Train_images", "val": "Val_images", "test": "VQAMed2019_Test_Images"}
_TABLE = "questions.csv"


class VqaMed2019:
    """A folder with the three published archives unpacked, however deep, or with ``questions.csv`` (see `QuestionJson`).

    A question is closed where its answer is yes or no: the data does not say it. The published test has no other answers
    beside the reference.
    """

    name = "vqa-med-2019"
    kind: Kind = "vqa"

    def __init__(self, path: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path = path
        self._table = QuestionJson(path / _TABLE) if (path / _TABLE).is_file() else None
        if self._table is not None:
            self.notes = self._table.notes

    def __iter__(self) -> Iterator[ImageRecord]:
        if self._table is not None:
            yield from self._table
            return
        for split in ("train", "val", "test"):
            yield from by_image(split, self._rows(split))

    def _rows(self, split: str) -> Iterator[Row]:
        images = self._found(_IMAGES[split], "folder")
        if split == "test":
            yield from self._lines(self._found(_TEST, "file"), images, None)
            return
        for name, category in CATEGORIES.items():
            yield from self._lines(self._found(f"{name}_{split}.txt", "file"), images, category)

    def _lines(self, path: Path, images: Path, category: str | None) -> Iterator[Row]:
        """image|question|answer, or in the test (``category`` None) image|category|question|answer."""
        try:
            lines = read_bytes(path, MOST_LINES).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise M2I2Error(f"Cannot read {path}: {e}. It must be the published UTF-8 text; unpack the archive again.") from e
        parts = 4 if category is None else 3
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields = [field.strip() for field in line.split("|")]
            if len(fields) != parts or not all(fields):
                raise M2I2Error(f"{path}, line {number}: {parts} texts separated by | were expected: {line!r:.120}.")
            image, *told, question, answer = fields
            kind = category or told[0].lower()
            if kind not in CATEGORIES.values():
                raise M2I2Error(f"{path}, line {number}: the category {kind!r:.40} is not one of {', '.join(CATEGORIES.values())}.")
            yield (
                image,
                find_image(images, image),
                Question(
                    id=f"{path.stem}-{number}",
                    question=question,
                    answer=answer,
                    closed=yes_or_no(answer),
                    metadata={"question_type": kind},
                ),
            )

    def _found(self, name: str, what: str) -> Path:
        """The file or folder of that name below the path; M2I2Error where there is none, or more than one."""
        found = sorted(path for path in self._path.rglob(name) if path.is_dir() == (what == "folder"))
        if len(found) != 1:
            there = f"{len(found)}, the first two {found[0]} and {found[1]}; leave one" if found else "none"
            raise M2I2Error(
                f"{self._path} must hold one {what} {name}, or a {_TABLE}; there is {there}. Unpack the training, validation and "
                f"test archives of VQA-Med 2019 there."
            )
        return found[0]
