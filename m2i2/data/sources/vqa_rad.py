"""VQA-RAD, from its OSF publication or from the MEVF/M2I2 trainset/testset: the same 3,064 and 451 questions.

The training set that every published number uses holds, beside the free-form and paraphrased training questions, the
templated rewrite ("frame") of EVERY record, test records included: 284 of the 1,267 framed training questions are
rewrites of test questions. Framed questions name the kind of record that they were made from in ``framed_from`` and its id in
``origin_id``: in the OSF file a frame is a field of its record; in the MEVF/M2I2 files its id follows that of its record
(`m2i2.data.sources.rewrites`). Copies circulate that call the id ``question_id`` or give test questions their OSF kind.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.grouping import Row, by_image
from m2i2.data.sources.reading import find_image, image_name, is_closed, objects, text, text_or_empty
from m2i2.data.sources.rewrites import link_frames
from m2i2.errors import M2I2Error

_PUBLIC = "VQA_RAD Dataset Public.json"
_IMAGES = "VQA_RAD Image Folder"


class VqaRad:
    """A folder with the public json, or with ``trainset.json`` and ``testset.json``, and the images."""

    name = "vqa-rad"
    kind: Kind = "vqa"

    def __init__(self, path: Path, image_root: Path | None = None) -> None:
        """Images lie in ``image_root``, by default in the folder that the publication has them in, or in ``images``."""
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path = path
        self._public = (path / _PUBLIC).is_file()
        if not self._public and not all((path / f"{s}set.json").is_file() for s in ("train", "test")):
            raise M2I2Error(f"{path} holds neither {_PUBLIC!r} nor trainset.json and testset.json.")
        nearby = [path / _IMAGES, path / "images", path.parent / "vqa_rad" / _IMAGES, path.parent / _IMAGES]
        folder = Path(image_root) if image_root else next((f for f in nearby if f.is_dir()), None)
        if folder is None or not folder.is_dir():
            raise M2I2Error(f"The images of {path} were not found; name their folder with --image-root.")
        self._images = folder

    def __iter__(self) -> Iterator[ImageRecord]:
        self.notes.clear()
        rows = {split: list(self._of_public(split) if self._public else self._of_set(split)) for split in ("train", "test")}
        for split, linked in link_frames(rows, self.notes).items():
            yield from by_image(split, linked)

    def _of_public(self, split: str) -> Iterator[Row]:
        path = self._path / _PUBLIC
        for number, record in objects(path):
            phrase_type = text(record, "phrase_type", path, number)
            in_test = phrase_type.startswith("test_")
            kind = phrase_type.removeprefix("test_")
            if in_test == (split == "test"):
                yield self._question(record, path, number, record.get("question"), kind)
            frame = record.get("question_frame")
            if split == "train" and frame not in (None, "", "NULL"):
                origin = _id(record, path, number)
                yield self._question(record, path, number, frame, "frame", phrase_type, origin, f"{origin}-frame")

    def _of_set(self, split: str) -> Iterator[Row]:
        path = self._path / f"{split}set.json"
        for number, record in objects(path):
            phrase_type = text(record, "phrase_type", path, number)
            yield self._question(record, path, number, record.get("question"), phrase_type)

    def _question(
        self,
        record: dict[str, Any],
        path: Path,
        number: int,
        question: Any,
        phrase_type: str,
        framed_from: str = "",
        origin: str = "",
        new_id: str = "",
    ) -> Row:
        name = image_name(self._images, text(record, "image_name", path, number))
        metadata = {
            "phrase_type": phrase_type,
            "question_type": text_or_empty(record, "question_type", path, number).strip(),
            "organ": text_or_empty(record, "image_organ", path, number),
        }
        if linked := text_or_empty(record, "qid_linked_id", path, number):
            metadata["linked_id"] = linked
        if framed_from:
            metadata |= {"framed_from": framed_from, "origin_id": origin}
        return (
            name,
            find_image(self._images, name),
            Question(
                id=new_id or _id(record, path, number),
                question=text({"question": question}, "question", path, number),
                answer=text(record, "answer", path, number),
                closed=is_closed(record, path, number),
                metadata=metadata,
            ),
        )


def _id(record: dict[str, Any], path: Path, number: int) -> str:
    return text(record, "qid" if "qid" in record or "question_id" not in record else "question_id", path, number)
