"""Reading the files that data sets come in, with errors that name file and record."""

import csv
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from m2i2.errors import M2I2Error
from m2i2.files import check_file, parse_json, read_bytes

MOST_LIST = 128 << 20
"""Bytes of a JSON list, which is read whole; JSONL is read line by line, whatever its size."""
MOST_LINE = 4 << 20
"""Characters of a line of CSV, TSV or JSONL."""


def rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV or TSV file with a header.

    ``columns`` maps the names that we use to those of the header, compared without case; M2I2Error where one is missing,
    a row has another number of fields, or the file is not UTF-8 text.
    """
    lines = _lines(path)
    _, first = next(lines)
    header = [name.strip().lower() for name in first]
    if missing := [theirs for theirs in columns.values() if theirs.lower() not in header]:
        shown = ",".join(first)
        raise M2I2Error(f"{path} has no column {missing[0]!r}; its header is {shown[:200]!r}. Is it the right file?")
    places = {ours: header.index(theirs.lower()) for ours, theirs in columns.items()}
    for line, row in lines:
        yield line, {ours: row[place] for ours, place in places.items()}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a CSV or TSV file, its header first; every row has as many fields as the header."""
    try:
        check_file(path)
        with path.open(newline="", encoding="utf-8-sig") as f:
            first = next(_lines_of(f, path), "")
            f.seek(0)
            reader = csv.reader(_lines_of(f, path), delimiter="\t" if "\t" in first else ",", strict=True)
            header = next(reader, [])
            yield reader.line_num, header
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise M2I2Error(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}. "
                        f"Texts that hold the separator need quotes."
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise M2I2Error(f"Cannot read {path}: {e}. Is it a UTF-8 CSV or TSV file?") from e


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of a JSON list, a JSONL file, or a CSV or TSV file with a header; an empty CSV field is no field."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        yield from objects(path)
        return
    lines = _lines(path)
    _, header = next(lines)
    names = [name.strip().lower() for name in header]
    for line, row in lines:
        yield line, {name: value for name, value in zip(names, row, strict=True) if value != ""}


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a JSON list of objects, or of a JSONL file, which is read line by line."""
    try:
        if path.suffix == ".jsonl":
            check_file(path)
            with path.open(encoding="utf-8") as f:
                for number, line in enumerate(_lines_of(f, path), 1):
                    if line.strip():
                        yield number, _object(path, number, _parse(path, line.encode(), f"line {number}"))
            return
        values = _parse(path, read_bytes(path, MOST_LIST), "the file")
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read {path}: {e}. Is it a UTF-8 JSON file?") from e
    if not isinstance(values, list):
        raise M2I2Error(f"{path} holds {type(values).__name__}, not a list of records.")
    for number, value in enumerate(values):
        yield number, _object(path, number, value)


def _lines_of(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a text file, none longer than the bound."""
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise M2I2Error(f"{path} was refused: it has a line of more than {MOST_LINE} characters.")
        yield line


def _parse(path: Path, content: bytes, where: str) -> Any:
    try:
        return parse_json(content)
    except ValueError as e:
        raise M2I2Error(f"{path}: {where} is not valid JSON ({e}).") from e


def _object(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise M2I2Error(f"{path}, record {number} is {type(value).__name__}, not an object.")
    return value


def text(record: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field as text (some answers are JSON numbers); M2I2Error where it is missing or of another kind."""
    value = record.get(key)
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "is missing" if value is None else f"is {type(value).__name__}"
        raise M2I2Error(f"{path}, record {number}: the field {key!r} {found}; text was expected.")
    if not math.isfinite(value):
        raise M2I2Error(f"{path}, record {number}: the field {key!r} is {value}, which is no number.")
    return str(value)


def text_or_empty(record: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field as text, empty where it is missing or null."""
    return "" if record.get(key) is None else text(record, key, path, number)


CLOSED_FROM_ANSWER = "question taken as closed where its answer is yes or no, else as open, because the data does not say"
"""What the readers note of each question for which `told_closed` is None."""


def told_closed(record: Mapping[str, Any], path: Path, number: int) -> bool | None:
    """Whether the field ``answer_type`` (CLOSED, yes/no ...) tells of a fixed choice of answers; None where there is none."""
    if record.get("answer_type") is None:
        return None
    return text(record, "answer_type", path, number).strip().upper() in ("CLOSED", "YES/NO")


def yes_or_no(answer: str) -> bool:
    """Whether an answer is yes or no: what tells a closed question where the data does not say."""
    return answer.strip().strip(".").lower() in ("yes", "no")


def key_of(name: str) -> str:
    """A WebDataset key from a file name: without dots, slashes and spaces."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name.rsplit(".", 1)[0] if "." in name else name)


def key_of_path(name: str) -> str:
    """A path as a key; one that is long or not ASCII is told apart by a hash, because a key cannot hold it whole."""
    key = key_of(name.replace("/", "_"))
    if len(key) <= 80 and name.isascii():
        return key
    return f"{key[-60:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def find_image(folder: Path, name: str) -> Path:
    """The image ``name`` (with or without ending) in ``folder``; a path that does not exist where there is none.

    M2I2Error for a name that leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise M2I2Error(f"The image name {name!r:.200} leads out of {folder}.")
    try:
        for candidate in (name, f"{name}.jpg", f"{name}.png", f"{name}.jpeg", f"{name}.dcm"):
            path = folder / candidate
            if path.is_file():
                return path
    except OSError as e:
        raise M2I2Error(f"The image {name!r:.80} in {folder} cannot be looked up: {e.strerror}.") from e
    return folder / (name if "." in name else f"{name}.jpg")
