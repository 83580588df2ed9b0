"""Image-caption pairs in JSON, as M2I2, ALBEF and R2Gen list them, in JSON Lines, or in CSV or TSV."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind
from m2i2.data.sources.reading import Keys, find_image, image_name, text
from m2i2.data.sources.tables import OwnTable
from m2i2.data.sources.vocabulary import split_name
from m2i2.errors import M2I2Error


class CaptionJson:
    """Records of ``image`` (a path, or a list of paths with one caption), ``caption`` (a text or a list) and ``split``.

    The captions of an image may come in several records, and splits in any order: all texts are held in memory.
    """

    name = "json"
    kind: Kind = "captions"

    def __init__(self, path: Path, image_root: Path | None = None, split: str = "train", columns: str = "") -> None:
        """Image paths start at ``image_root``, by default at the file's folder; ``split`` is for records that name none.

        ``columns``: "caption=findings,image=scan", where the file uses other names.
        """
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._table = OwnTable(path, ("image", "caption"), columns, self.notes)
        self._path, self._root, self._split = path, Path(image_root or path.parent), split_name(split, "--split")

    def __iter__(self) -> Iterator[ImageRecord]:
        self.notes.clear()
        splits: dict[str, dict[str, list[str]]] = {}
        for number, record in self._table:
            told = record.get("split")
            split = self._split if told is None else split_name(text(record, "split", self._path, number), self._where(number))
            captions = self._captions(record["caption"], number)
            for name in self._names(record["image"], number):
                splits.setdefault(split, {}).setdefault(image_name(self._root, name), []).extend(captions)
        for split, images in splits.items():
            keys = Keys()
            for name, captions in images.items():
                yield ImageRecord(
                    key=keys.of(name),
                    split=split,
                    image=find_image(self._root, name),
                    captions=tuple(captions),
                    metadata={"id": name},
                )

    def _where(self, number: int) -> str:
        return f"{self._path}, record {number}"

    def _names(self, value: Any, number: int) -> list[str]:
        names = value if isinstance(value, list) and value else [value]
        return [text({"image": name}, "image", self._path, number) for name in names]

    def _captions(self, value: Any, number: int) -> list[str]:
        """The captions of a record; an empty one where there is none, which is then rejected."""
        captions = value if isinstance(value, list) else [value]
        if not all(isinstance(caption, str | None) for caption in captions):
            raise M2I2Error(f"{self._where(number)}: the field 'caption' must be a text or a list of texts.")
        return [caption or "" for caption in captions] or [""]
