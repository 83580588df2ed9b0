"""Parquet files with the images inside, as data sets are published on the Hugging Face hub.

A folder holds ``data/{split}-00000-of-00003.parquet`` (with or without a hash behind it), or ``{split}/0000.parquet``. An
image column holds ``{bytes, path}``, bare bytes or a path. Memory is that of a row group (the hub writes 100 rows into one), not
of a file; questions are gathered under their images in a first pass, and the images read in a second one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.pages import batches, read_footer
from m2i2.data.sources.reading import (
    CLOSED_FROM_ANSWER,
    Keys,
    find_image,
    key_of_path,
    refuse_foreign,
    text,
    told_closed,
    yes_or_no,
)
from m2i2.data.sources.tables import one_text
from m2i2.data.sources.vocabulary import COLUMNS, ORDER, SPLITS, missing_column, renamed_columns
from m2i2.errors import M2I2Error
from m2i2.files import check_file

_NAME = re.compile(r"(?P<split>[A-Za-z_]+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(-[0-9a-f]+)?")

_NEEDED: dict[Kind, tuple[str, ...]] = {"captions": ("image", "caption"), "vqa": ("image", "question", "answer")}
_METADATA: dict[Kind, tuple[str, ...]] = {
    "captions": ("image_id", "modality", "cui"),
    "vqa": ("question_type", "phrase_type", "modality", "organ", "language"),
}


class TableSource:
    """What both kinds share: files by split, and rows out of them."""

    name = "parquet"
    kind: Kind

    def __init__(self, path: Path, columns: str = "", image_root: Path | None = None) -> None:
        """``columns``: "caption=findings,image=scan", where files use other names; ``image_root``: where image paths start."""
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._root = Path(image_root or (path if path.is_dir() else path.parent))
        self._renamed = renamed_columns(columns)
        self._files = self._files_by_split(path)

    def _files_by_split(self, path: Path) -> dict[str, list[Path]]:
        """The files of each split, in order, train first."""
        return _files_by_split(path)

    def _read(self, file: Path) -> Iterator[dict[str, Any]]:
        """The rows of a file, its columns by our names."""
        return _read(file, self.kind, self._renamed)

    def _rows(self, split: str) -> Iterator[tuple[Path, int, dict[str, Any]]]:
        """(file, row of the split, its columns by our names)."""
        number = 0
        for file in self._files[split]:
            try:
                check_file(file)  # opening a pipe would wait for its writer
                refuse_foreign(file)
            except OSError as e:
                raise M2I2Error(f"Cannot read {file}: {e.strerror}.") from e
            for row in self._read(file):
                yield file, number, row
                number += 1

    def _image(self, value: Any, file: Path, number: int) -> bytes | Path:
        """The image of a row: its bytes, or the file that it names; no bytes where there is neither (it will be rejected)."""
        value = one_text(value)
        if isinstance(value, list) and value:
            raise M2I2Error(f"{file}, row {number}: it has {len(value)} images; a row has one.")
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None or isinstance(value, bytes) or value == []:
            return value or b""
        if isinstance(value, str):
            return find_image(self._root, value)
        raise M2I2Error(f"{file}, row {number}: the image is {type(value).__name__}; bytes or a path were expected.")

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, str]:
        found = {name: row[name] for name in _METADATA[self.kind] if row.get(name) is not None}
        return {name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in found.items()}


class ParquetCaptions(TableSource):
    """Rows of ``image`` and ``caption`` (a text or a list of texts)."""

    kind: Kind = "captions"

    def __iter__(self) -> Iterator[ImageRecord]:
        for split in self._files:
            for file, number, row in self._rows(split):
                captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
                if not all(isinstance(caption, str | None) for caption in captions):
                    raise M2I2Error(f"{file}, row {number}: the caption must be a text or a list of texts.")
                yield ImageRecord(
                    key=key_of_path(str(row["image_id"])) if row.get("image_id") else f"row-{number:08d}",
                    split=split,
                    image=self._image(row["image"], file, number),
                    captions=tuple(caption or "" for caption in captions) or ("",),
                    metadata=self._metadata(row),
                )


class ParquetQuestions(TableSource):
    """Rows of ``image``, ``question`` and ``answer``; questions about the same image become one record.

    Without a column ``answer_type`` a question counts as closed where its answer is yes or no; the number of those
    questions is told, because published counts of closed questions may differ.
    """

    kind: Kind = "vqa"

    def __iter__(self) -> Iterator[ImageRecord]:
        self.notes.clear()
        for split in self._files:
            first_rows, questions, passed_over = self._gathered(split)
            for file, number, row in self._rows(split):
                image = first_rows.get(number)
                if image is None:
                    continue
                yield ImageRecord(
                    key=image,
                    split=split,
                    image=self._image(row["image"], file, number),
                    questions=tuple(questions.pop(image, ())),
                    passed_over=tuple(passed_over.pop(image, ())),
                    metadata={"image": image},
                )

    def _gathered(self, split: str) -> tuple[dict[int, str], dict[str, list[Question]], dict[str, list[tuple[str, str]]]]:
        """The key of the image that each row is the first one of, all questions about each image, and those passed over."""
        first_rows: dict[int, str] = {}
        questions: dict[str, list[Question]] = {}
        passed_over: dict[str, list[tuple[str, str]]] = {}
        keys = Keys()
        for file, number, row in self._rows(split):
            image = self._image(row["image"], file, number)
            if isinstance(image, Path):
                key = keys.of(str(image.relative_to(self._root)))
            else:
                key = hashlib.sha256(image).hexdigest()[:24] if image else f"row-{number:08d}"
            if key not in questions and key not in passed_over:
                first_rows[number] = key
            found = self._question(split, file, number, row)
            if isinstance(found, Question):
                questions.setdefault(key, []).append(found)
            else:
                passed_over.setdefault(key, []).append(found)
        return first_rows, questions, passed_over

    def _question(self, split: str, file: Path, number: int, row: dict[str, Any]) -> Question | tuple[str, str]:
        """The question of a row; its id and why it cannot be used, where its text or its answer is empty."""
        row = {ours: value if ours == "image" else one_text(value) for ours, value in row.items()}
        key = str(row["question_id"]) if row.get("question_id") is not None else f"{split}-{number:06d}"
        for field in ("question", "answer"):
            value = row[field]
            if value is None or value != value or (isinstance(value, str) and not value.strip()):
                return key, f"empty {field}"
        answer = text(row, "answer", file, number)
        metadata = self._metadata(row)
        closed = told_closed(row, file, number)
        if closed is None:
            self.notes[CLOSED_FROM_ANSWER] += 1
            metadata["closed_from"] = "answer"
        return Question(
            id=key,
            question=text(row, "question", file, number),
            answer=answer,
            closed=yes_or_no(answer) if closed is None else closed,
            metadata=metadata,
        )


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, in order, train first; M2I2Error for a file without a split or one that is missing."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        match = _NAME.fullmatch(file.stem)
        name = (match["split"] if match else file.parent.name if file.stem.isdigit() else file.stem).lower()
        split = SPLITS.get(name)
        if split is None:
            known = ", ".join(SPLITS)
            raise M2I2Error(f"{file} does not tell its split: it must be called like train-00000-of-00001.parquet ({known}).")
        part = match["part"] if match else file.stem
        if part in found.setdefault(split, {}):
            raise M2I2Error(f"{file} and {found[split][part]} are the same part of {split}; name the folder of one of them.")
        found[split][part] = file
        if match and path.is_dir():
            missing = [n for n in range(int(match["parts"])) if not list(file.parent.glob(f"{match['split']}-{n:05d}-of-*"))]
            if missing:
                raise M2I2Error(f"{file.parent} lacks part {missing[0]:05d} of {match['parts']} of {name}; download it again.")
    if not found:
        raise M2I2Error(f"{path} holds no parquet files; they are called like data/train-00000-of-00001.parquet.")
    order = sorted(found, key=ORDER.index)
    return {split: [found[split][part] for part in sorted(found[split])] for split in order}


def columns_of(there: Sequence[str], kind: Kind, renamed: Mapping[str, str], file: Path) -> dict[str, str]:
    """{their name: ours} of the columns that are read; M2I2Error where one is missing that is needed."""
    header = {name.lower(): name for name in there}
    ours: dict[str, str] = {}
    for name, usual in COLUMNS.items():
        theirs = [header[n.lower()] for n in ([renamed[name]] if name in renamed else usual) if n.lower() in header]
        if theirs:
            ours[theirs[0]] = name
        elif name in _NEEDED[kind] or name in renamed:
            raise M2I2Error(f"{file} has {missing_column(name, renamed, header)}")
    return ours


def _read(file: Path, kind: Kind, renamed: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a file, its columns by our names; M2I2Error where it is damaged or lacks one that is needed."""
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise M2I2Error("Parquet files need pyarrow: pip install '.[parquet]'.") from e
    groups = read_footer(file)
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as table:
            ours = columns_of(table.schema_arrow.names, kind, renamed, file)
            for batch in batches(table, groups, file, list(ours)):
                yield from ({ours[name]: value for name, value in row.items()} for row in batch.to_pylist())
    except M2I2Error:
        raise
    except Exception as e:  # damaged files raise almost anything
        reason = (str(e).splitlines() or [""])[0]
        raise M2I2Error(f"{file} is not a readable parquet file ({type(e).__name__}: {reason:.200}). Download it again.") from e
