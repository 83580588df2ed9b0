"""ROCOv2 and ImageCLEFmedical Caption: one caption an image, in CSV or TSV files beside folders of images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind
from m2i2.data.sources.reading import find_image, key_of, rows
from m2i2.errors import M2I2Error

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_TABLES = ("*{split}*captions*.csv", "*{split}*captions*.tsv", "*caption*{split}*.csv", "*caption*{split}*.tsv")


class RocoV2:
    """``{train,valid,test}/ID.jpg`` (or ``{split}_images/``) with ``*{split}*captions*.csv`` or ``*caption*{split}*.tsv``."""

    name = "rocov2"
    kind: Kind = "captions"

    def __init__(self, path: Path) -> None:
        """M2I2Error unless ``path`` holds a table and a folder of images for at least one split."""
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._splits = []
        for theirs, ours in _SPLITS.items():
            tables = sorted({table for pattern in _TABLES for table in path.glob(pattern.format(split=theirs))})
            folders = [path / theirs, path / f"{theirs}_images", *sorted(path.glob(f"*_{theirs}_images"))]
            folder = next((f for f in folders if f.is_dir()), None)
            if len(tables) > 1:
                raise M2I2Error(f"{path} has several caption tables for {theirs}: {', '.join(t.name for t in tables)}.")
            if bool(tables) != bool(folder):
                have, lack = ("table", "folder of images") if tables else ("folder of images", "caption table")
                raise M2I2Error(f"{path} has a {have} but no {lack} for the split {theirs}.")
            if tables and folder:
                self._splits.append((ours, tables[0], folder))
        if not self._splits:
            raise M2I2Error(f"{path} holds no caption table such as train_captions.csv with a folder train/ beside it.")

    def __iter__(self) -> Iterator[ImageRecord]:
        for split, table, folder in self._splits:
            for line, row in rows(table, {"id": "ID", "caption": "Caption"}):
                if not row["id"].strip():
                    raise M2I2Error(f"{table}, line {line}: the ID is empty.")
                yield ImageRecord(
                    key=key_of(row["id"]),
                    split=split,
                    image=find_image(folder, row["id"].strip()),
                    captions=(row["caption"],),
                    metadata={"id": row["id"]},
                )
