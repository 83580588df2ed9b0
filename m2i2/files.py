"""Files written at once or not at all, read within bounds, and their hashes."""

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error

MOST_JSON = 64 << 20
"""Bytes of an index, manifest or settings file."""
MOST_LINES = 256 << 20
"""Bytes of a run's log or of an evaluation's predictions."""
MOST_VALUES = 10_000_000
"""Values of a JSON text: parsed, each takes up to 100 bytes, however few it has in the file."""


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step: a reader sees the old file or the new one, never a part.

    What is no Unicode (bytes of a path that is not UTF-8) becomes an escape, which in JSON means the same.
    """
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def check_file(path: Path, most: int | None = None) -> int:
    """The size of a regular file; OSError for anything else, because a pipe or a device may never end.

    M2I2Error where it has more than ``most`` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if most is not None and status.st_size > most:
        raise M2I2Error(f"{path} was refused: it has {status.st_size} bytes, more than the bound of {most}.")
    return status.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes, its size checked before anything is allocated.

    M2I2Error for a larger one, OSError for one that is missing, no regular file or cannot be read.
    """
    check_file(path, most)
    return path.read_bytes()


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(f"the number {word:.20} is too large")
    return value


_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8; ValueError for anything else: NaN, infinite numbers, endless nesting, other codings,
    and for more values than `MOST_VALUES`.
    """
    if len(content) > MOST_VALUES and sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it may hold more than {MOST_VALUES} values; split it, or write it as JSON Lines")
    try:
        return _STRICT.decode(content.decode("utf-8-sig"))
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def read_json(path: Path, what: str, remedy: str = "", most: int = MOST_JSON) -> Any:
    """The value of a JSON file that is ``what``; M2I2Error where it is missing, larger than ``most`` bytes or no JSON."""
    try:
        return parse_json(read_bytes(path, most))
    except M2I2Error:
        raise
    except (OSError, ValueError) as e:
        if isinstance(e, OSError):
            raise M2I2Error(f"Cannot read the {what} {path}: {e.strerror}.{remedy}") from e
        raise M2I2Error(f"The {what} {path} is not valid JSON: {e}.{remedy}") from e


def read_rows(path: Path) -> list[Any]:
    """The values of a file of JSON Lines of at most `MOST_LINES` bytes; OSError or ValueError where it cannot be read."""
    return [parse_json(line) for line in read_bytes(path, MOST_LINES).split(b"\n") if line.strip()]


def read_object(path: Path, what: str, remedy: str = "", most: int = MOST_JSON) -> dict[str, Any]:
    """A JSON object from a file that is ``what``; M2I2Error where it is missing or something else."""
    value = read_json(path, what, remedy, most)
    if not isinstance(value, dict):
        raise M2I2Error(f"The {what} {path} must be a JSON object.{remedy}")
    return value
