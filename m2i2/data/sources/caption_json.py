"""Image-caption pairs in JSON, as M2I2 and ALBEF list them, in JSONL, or in CSV or TSV."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind
from m2i2.data.sources.reading import find_image, key_of_path, records, text
from m2i2.errors import M2I2Error


class CaptionJson:
    """Objects of ``image`` (a path), ``caption`` (a text or a list of them) and, where there are several, ``split``."""

    name = "json"
    kind: Kind = "captions"

    def __init__(self, path: Path, image_root: Path | None = None, split: str = "train") -> None:
        """Image paths start at ``image_root``, by default at the file's folder; ``split`` is for records that name none."""
        if not path.is_file():
            raise M2I2Error(f"{path} is no JSON, JSONL, CSV or TSV file.")
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path, self._root, self._split = path, Path(image_root or path.parent), split

    def __iter__(self) -> Iterator[ImageRecord]:
        for number, record in records(self._path):
            name = text(record, "image", self._path, number)
            captions = record.get("caption")
            if isinstance(captions, str):
                captions = [captions]
            if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
                raise M2I2Error(f"{self._path}, record {number}: the field 'caption' must be a text or a list of texts.")
            yield ImageRecord(
                key=key_of_path(name),
                split=self._split if record.get("split") is None else text(record, "split", self._path, number),
                image=find_image(self._root, name),
                captions=tuple(captions),
                metadata={"id": name},
            )
