"""Reading the files that data sets come in, with errors that name file and record."""

import csv
import hashlib
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from m2i2.data.sources.vocabulary import SPLITS, means_closed
from m2i2.errors import M2I2Error
from m2i2.files import check_file, parse_json, read_bytes

MOST_LIST = 128 << 20
"""Bytes of a JSON list, which is read whole; JSONL is read line by line, whatever its size."""
MOST_LINE = 4 << 20
"""Characters of a line of CSV, TSV or JSONL."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
"""What may stand between the fields of a table, and its name."""
_ENDINGS = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|p[gpn]m)$", re.IGNORECASE)
"""Endings of image files; what else follows a dot is part of the name, as in a UID."""


def rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV or TSV file with a header.

    ``columns`` maps the names that we use to those of the header, compared without case; M2I2Error where one is missing,
    a row has another number of fields, or the file is not UTF-8 text.
    """
    lines = table_lines(path)
    _, first = next(lines)
    header = [name.strip().lower() for name in first]
    if missing := [theirs for theirs in columns.values() if theirs.lower() not in header]:
        shown = ",".join(first)
        raise M2I2Error(f"{path} has no column {missing[0]!r}; its header is {shown[:200]!r}. Is it the right file?")
    places = {ours: header.index(theirs.lower()) for ours, theirs in columns.items()}
    for line, row in lines:
        yield line, {ours: row[place] for ours, place in places.items()}


def separator_of(path: Path) -> str:
    """What stands between the fields of a table: of `SEPARATORS`, the most frequent one of its first line outside quotes."""
    try:
        check_file(path)
        refuse_foreign(path)
        with path.open(newline="", encoding="utf-8-sig") as f:
            first = next(_lines_of(f, path), "")
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read {path}: {_why(path, e)}. Is it a UTF-8 CSV or TSV file?") from e
    if told := re.fullmatch(r"sep=(.)\s*", first):  # as Excel writes it
        return told[1]
    outside = re.sub(r'"[^"]*"', "", first)
    return max(SEPARATORS, key=lambda mark: outside.count(mark))


def table_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a CSV or TSV file, its header first; every row has as many fields as the header."""
    separator = separator_of(path)
    named = SEPARATORS.get(separator, repr(separator))
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(_lines_of(f, path), delimiter=separator, strict=True)
            header = next(reader, [])
            if header == ["sep=", ""]:
                header = next(reader, [])
            yield reader.line_num, header
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise M2I2Error(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}, separated by "
                        f"{named}. Texts that hold the separator need quotes."
                    )
                yield reader.line_num, row
    except csv.Error as e:
        raise M2I2Error(f"Cannot read {path}, line {reader.line_num}: {e}. A quote inside a quoted text is written twice.") from e
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read {path}: {_why(path, e)}. Is it a UTF-8 CSV or TSV file?") from e


def refuse_foreign(path: Path) -> None:
    """M2I2Error for a file that begins like none of text: compressed, UTF-16, a pointer to what was not downloaded."""
    with path.open("rb") as f:
        start = f.read(64)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise M2I2Error(f"{path} is UTF-16 text (Excel's Unicode text); save it as CSV UTF-8.")
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise M2I2Error(f"{path} is compressed (gzip, ZIP or a spreadsheet); unpack it, or save it as CSV UTF-8.")
    if start.startswith(b"version https://git-lfs"):
        raise M2I2Error(f"{path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull.")


def _why(path: Path, error: Exception) -> str:
    """An error of reading; of bytes that are not UTF-8, the line that holds them."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    with path.open("rb") as f:
        for number, line in enumerate(iter(lambda: f.readline(MOST_LINE), b""), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as e:
                return f"line {number} holds the byte 0x{line[e.start]:02x}, which is not UTF-8 (Windows-1252? save it as UTF-8)"
    return str(error)


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a JSON list of objects; of JSON Lines, whatever the file is called, which are read line by line.

    An object of lists called like splits is read as their records, each with its ``split``, and one with a single list as
    the records of that; so is an object alone, as the only record.
    """
    try:
        check_file(path)
        refuse_foreign(path)
        if path.suffix.lower() in (".jsonl", ".ndjson") or _holds_lines(path):
            with path.open(encoding="utf-8-sig", newline="\n") as f:
                for number, line in enumerate(_lines_of(f, path), 1):
                    if line.strip():
                        yield number, _object(path, number, _parse(path, line.encode(), f"line {number}"))
            return
        values = _parse(path, read_bytes(path, MOST_LIST), "the file")
    except (OSError, UnicodeDecodeError) as e:
        raise M2I2Error(f"Cannot read {path}: {_why(path, e)}. Is it a UTF-8 JSON file?") from e
    if isinstance(values, dict):
        values = _records_of(values, path)
    if not isinstance(values, list):
        raise M2I2Error(f"{path} holds {type(values).__name__}, not a list of records.")
    for number, value in enumerate(values):
        yield number, _object(path, number, value)


def _holds_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a JSON object, and something follows it."""
    with path.open(encoding="utf-8-sig", newline="\n") as f:
        lines = (line for line in iter(lambda: f.readline(MOST_LINE), "") if line.strip())
        first = next(lines, "")
        if not first.lstrip().startswith("{") or len(first) == MOST_LINE or next(lines, None) is None:
            return False
    try:
        return isinstance(parse_json(first.encode("utf-8", "surrogatepass")), dict)
    except ValueError:
        return False


def _records_of(value: dict[str, Any], path: Path) -> list[Any]:
    """The records in a JSON object that holds lists of them."""
    lists = {name: inner for name, inner in value.items() if isinstance(inner, list)}
    of_records = {name: inner for name, inner in lists.items() if all(isinstance(record, dict) for record in inner)}
    if lists and lists == of_records and all(name.strip().lower() in SPLITS for name in lists):
        return [{"split": name, **record} for name, inner in lists.items() for record in inner]
    if len(lists) == len(of_records) == 1:
        return next(iter(of_records.values()))
    if lists and len(lists) == len(value):
        raise M2I2Error(
            f"{path} is an object of the lists {', '.join(lists)[:200]}; a list of records was expected. Write it as "
            f"[{{...}}, {{...}}], in pandas with to_json(orient='records')."
        )
    return [value]


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
        found += f" of {len(value)}" if isinstance(value, list) else ""
        raise M2I2Error(f"{path}, record {number}: the field {key!r} {found}; text was expected.")
    if not math.isfinite(value):
        raise M2I2Error(f"{path}, record {number}: the field {key!r} is {value}, which is not a number.")
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else str(value)


def text_or_empty(record: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    """A field as text, empty where it is missing or null."""
    return "" if record.get(key) is None else text(record, key, path, number)


CLOSED_FROM_ANSWER = "question taken as closed where its answer is yes or no, else as open, because the data does not say"
"""What the readers note of each question for which `told_closed` is None."""


def told_closed(record: Mapping[str, Any], path: Path, number: int) -> bool | None:
    """Whether the field ``answer_type`` (CLOSED, yes/no ...) tells of a fixed choice of answers; None where it says nothing.

    M2I2Error for a type that is not known.
    """
    if record.get("answer_type") is None:
        return None
    return means_closed(text(record, "answer_type", path, number), f"{path}, record {number}")


def is_closed(record: Mapping[str, Any], path: Path, number: int) -> bool:
    """The same of data that always says it: M2I2Error where it does not."""
    told = means_closed(text(record, "answer_type", path, number), f"{path}, record {number}")
    if told is None:
        raise M2I2Error(f"{path}, record {number}: the answer type is empty; CLOSED or OPEN was expected.")
    return told


def yes_or_no(answer: str) -> bool:
    """Whether an answer is yes or no: what tells a closed question where the data does not say."""
    return answer.strip().strip(".").lower() in ("yes", "no")


def key_of(name: str) -> str:
    """A WebDataset key from the name of an image: without its ending, dots, slashes and spaces."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", _ENDINGS.sub("", name))


def key_of_path(name: str) -> str:
    """A path as a key; one that is long or not ASCII is told apart by a hash, because a key cannot hold it whole."""
    key = key_of(name.replace("/", "_"))
    return key if len(key) <= 80 and name.isascii() else _with_hash(key, name)


def _with_hash(key: str, name: str) -> str:
    return f"{key[-60:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


class Keys:
    """The keys of a split's images: names that would have one key, such as a.png and a.tif, are told apart by a hash."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The key of a name, the same whenever it is asked for."""
        key = key_of_path(name)
        if self._names.setdefault(key, name) != name:
            key = _with_hash(key, name)
            self._names[key] = name
        return key


def image_name(folder: Path, name: str) -> str:
    """The name of an image as a path below ``folder``: without spaces around it and ./; absolute ones only from below there.

    M2I2Error for a name that leads out of the folder, and for a URL.
    """
    name = name.strip()
    if "://" in name:
        raise M2I2Error(f"The image {name!r:.200} is a URL; download the images, and name their files.")
    if Path(name).is_absolute():
        for base in (folder.absolute(), folder.resolve()):
            if Path(name).is_relative_to(base):
                name = Path(name).relative_to(base).as_posix()
                break
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise M2I2Error(f"The image name {name!r:.200} leads out of {folder}.")
    return posixpath.normpath(name) if name else name


def find_image(folder: Path, name: str) -> Path:
    """The image ``name`` (with or without ending) in ``folder``; a path that does not exist where there is none.

    M2I2Error for a name that leads out of the folder.
    """
    name = image_name(folder, name)
    spelled = dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
    if "\\" in name:
        spelled[name.replace("\\", "/")] = None
    try:
        for spelling in spelled:
            if spelling != name:
                image_name(folder, spelling)
            for ending in ("",) if _ENDINGS.search(name) else ("", ".jpg", ".png", ".jpeg", ".dcm", ".tif", ".tiff"):
                path = folder / f"{spelling}{ending}"
                if path.is_file():
                    return path
    except OSError as e:
        raise M2I2Error(f"The image {name!r:.80} in {folder} cannot be looked up: {e.strerror}.") from e
    return folder / (name if "." in name else f"{name}.jpg")
