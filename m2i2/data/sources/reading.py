"""Reading the files that data sets come in, with errors that name file and record."""

import csv
import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error

_CHECKED_PICKLE_BYTES = 1 << 30


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
        with path.open(newline="", encoding="utf-8-sig") as f:
            first = f.readline()
            f.seek(0)
            reader = csv.reader(f, delimiter="\t" if "\t" in first else ",", strict=True)
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
            with path.open(encoding="utf-8") as f:
                for number, line in enumerate(f, 1):
                    if line.strip():
                        yield number, _object(path, number, _parse(path, line, f"line {number}"))
            return
        values = _parse(path, path.read_text(encoding="utf-8-sig"), "the file")
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read {path}: {e}. Is it a UTF-8 JSON file?") from e
    if not isinstance(values, list):
        raise M2I2Error(f"{path} holds {type(values).__name__}, not a list of records.")
    for number, value in enumerate(values):
        yield number, _object(path, number, value)


def _parse(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise M2I2Error(f"{path}: {where} is not valid JSON ({e}).") from e


def _object(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise M2I2Error(f"{path}, record {number} is {type(value).__name__}, not an object.")
    return value


def text(record: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field as text (some answers are JSON numbers); M2I2Error where it is missing or of another kind."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = "is missing" if value is None else f"is {type(value).__name__}"
        raise M2I2Error(f"{path}, record {number}: the field {key!r} {found}; text was expected.")
    return str(value)


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers; whatever names a class or a function is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise M2I2Error(f"it names {module}.{name}: only plain containers are read, because anything else could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise M2I2Error("it refers to objects outside the file")


def plain_pickle(path: Path) -> Any:
    """The plain value in a pickle; M2I2Error for anything that would need a class, and for damaged files."""
    try:
        if path.stat().st_size > _CHECKED_PICKLE_BYTES:
            raise M2I2Error("it is larger than 1 GiB")
        with path.open("rb") as f:
            return _PlainUnpickler(f).load()
    except M2I2Error as e:
        raise M2I2Error(f"{path} was refused: {e}. Use the original file, or convert it to JSON.") from e
    except Exception as e:  # a damaged pickle raises almost anything
        raise M2I2Error(f"{path} is no readable pickle ({type(e).__name__}: {e}). Download it again.") from e


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
        raise M2I2Error(f"The image name {name!r} leads out of {folder}.")
    for candidate in (name, f"{name}.jpg", f"{name}.png", f"{name}.jpeg", f"{name}.dcm"):
        path = folder / candidate
        if path.is_file():
            return path
    return folder / (name if "." in name else f"{name}.jpg")
