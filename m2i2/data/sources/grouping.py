"""Questions gathered under their images, in the order in which the images first appear."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Question
from m2i2.data.sources.reading import key_of_path
from m2i2.errors import M2I2Error


def by_image(split: str, rows: Iterable[tuple[str, Path, Question]]) -> Iterator[ImageRecord]:
    """One record an image from (image name, file, question); M2I2Error for a question id that comes twice."""
    images: dict[str, tuple[Path, list[Question]]] = {}
    seen: set[str] = set()
    for name, path, question in rows:
        if question.id in seen:
            raise M2I2Error(f"The question id {question.id!r} comes twice in the split {split}; ids must be unique.")
        seen.add(question.id)
        images.setdefault(name, (path, []))[1].append(question)
    for name, (path, questions) in images.items():
        yield ImageRecord(
            key=key_of_path(name),
            split=split,
            image=path,
            questions=tuple(questions),
            metadata={"image": name},
        )
