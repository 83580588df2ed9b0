"""Questions gathered under their images, in the order in which the images first appear."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Question
from m2i2.data.sources.reading import Keys
from m2i2.errors import M2I2Error

Row = tuple[str, Path, Question | tuple[str, str]]
"""Image name, its file, and a question about it; or, of one that cannot be used, its id and why."""


def by_image(split: str, rows: Iterable[Row]) -> Iterator[ImageRecord]:
    """One record an image; M2I2Error for a question id that comes twice, and for a split train without questions."""
    images: dict[str, tuple[Path, list[Question], list[tuple[str, str]]]] = {}
    seen: set[str] = set()
    for name, path, question in rows:
        key = question.id if isinstance(question, Question) else question[0]
        if key in seen:
            raise M2I2Error(f"The question id {key!r} comes twice in the split {split}; ids must be unique.")
        seen.add(key)
        _, questions, passed_over = images.setdefault(name, (path, [], []))
        if isinstance(question, Question):
            questions.append(question)
        else:
            passed_over.append(question)
    if split == "train" and not images:
        raise M2I2Error("The split train holds no question; there is nothing to train on. Is it the right file?")
    keys = Keys()
    for name, (path, questions, passed_over) in images.items():
        yield ImageRecord(
            key=keys.of(name),
            split=split,
            image=path,
            questions=tuple(questions),
            metadata={"image": name},
            passed_over=tuple(passed_over),
        )
