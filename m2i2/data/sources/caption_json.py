"""Image-caption pairs in JSON, as M2I2 and ALBEF list them, or in JSONL."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind
from m2i2.data.sources.reading import find_image, key_of, objects, text
from m2i2.errors import M2I2Error


class CaptionJson:
    """Objects of ``image`` (a path), ``caption`` (a text or a list of them) and, where there are several, ``split``."""

    name = "json"
    kind: Kind = "captions"

    def __init__(self, path: Path, image_root: Path | None = None, split: str = "train") -> None:
        """Image paths start at ``image_root``, by default at the file's folder; ``split`` is for records that name none."""
        if not path.is_file():
            raise M2I2Error(f"{path} is no JSON or JSONL file.")
        self.left_out: Counter[str] = Counter()
        self._path, self._root, self._split = path, Path(image_root or path.parent), split

    def __iter__(self) -> Iterator[ImageRecord]:
        for number, record in objects(self._path):
            name = text(record, "image", self._path, number)
            captions = record.get("caption")
            if isinstance(captions, str):
                captions = [captions]
            if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
                raise M2I2Error(f"{self._path}, record {number}: the field 'caption' must be a text or a list of texts.")
            yield ImageRecord(
                key=_key(name),
                split=self._split if record.get("split") is None else text(record, "split", self._path, number),
                image=find_image(self._root, name),
                captions=tuple(captions),
                metadata={"id": name},
            )


def _key(name: str) -> str:
    """The path as a key; one that is long or not ASCII is told apart by a hash, because a key cannot hold it whole."""
    key = key_of(name.replace("/", "_"))
    if len(key) <= 80 and name.isascii():
        return key
    return f"{key[-60:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
