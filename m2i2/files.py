"""Files written at once or not at all, read within bounds, and their hashes."""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from m2i2.errors import M2I2Error
from m2i2.ownership import open_plain

MOST_JSON = 64 << 20
"""Bytes of an index, manifest or settings file."""
MOST_LINES = 256 << 20
"""Bytes of a run's log or of an evaluation's predictions."""
MOST_VALUES = 10_000_000
"""Values of a JSON text: parsed, each takes up to 100 bytes, however few it has in the file."""


WRITING = ".writing"
"""How the names of unfinished files end."""


def unfinished(path: Path) -> Path:
    """A name beside ``path`` for a file that is being written; nobody can guess it, so that nobody can plant a link there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{WRITING}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` at the end of the context; after an error it is removed.

    A reader of ``path`` sees the old file or the new one, never a part. A link at ``path`` is replaced, not followed.
    """
    temporary = unfinished(path)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step, as `replacing` does.

    What is not Unicode (bytes of a path that is not UTF-8) becomes an escape, which in JSON means the same.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, *, ascii: bool = True) -> None:
    """Write ``value`` as a JSON file in the same way; ``ascii``: whether other characters are escaped."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=ascii) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to the regular file ``path``, which is made where it is missing; a link is not followed."""
    with open_to_append(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def open_to_append(path: Path) -> BinaryIO:
    """The regular file ``path``, open at its end; made where it is missing; a link is not followed."""
    return open(open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), "ab")


def open_to_write(path: Path) -> BinaryIO:
    """The regular file ``path``, empty; made where it is missing; a link is not followed."""
    return open(open_plain(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o666), "wb")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """The sha256 of an open file from its present place to its end."""
    h = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        h.update(block)
    return h.hexdigest()


def check_file(path: Path, most: int | None = None) -> int:
    """The size of a regular file; OSError for anything else, because a pipe or a device may never end.

    M2I2Error where it has more than ``most`` bytes.
    """
    return _check(path.stat(), path, most)


def _check(status: os.stat_result, path: Path, most: int | None) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if most is not None and status.st_size > most:
        raise M2I2Error(f"{path} was refused: it has {status.st_size} bytes, more than the bound of {most}.")
    return status.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes, its size checked on the open file before anything is allocated.

    M2I2Error for a larger one, OSError for one that is missing, no regular file or cannot be read.
    """
    check_file(path, most)  # before it is opened, which some devices notice
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # what is there now may be a pipe after all
        _check(os.fstat(file.fileno()), path, most)
        content = file.read(most + 1)
    if len(content) > most:  # it grows, or is one of /proc, which have no size and may never end
        raise M2I2Error(f"{path} was refused: it has more than the bound of {most} bytes.")
    return content


def read_tail(path: Path, most: int) -> str:
    """The last ``most`` bytes of the regular file ``path`` as text; a link is not followed."""
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most).decode(errors="replace")


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


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
        return _STRICT.decode(content.removeprefix(b"\xef\xbb\xbf").decode())
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


def require_new_folder(folder: Path, remedy: str) -> None:
    """M2I2Error, which ends with ``remedy``, unless nothing stands at ``folder`` or it is an empty folder."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise M2I2Error(f"{folder} is not {'empty' if folder.is_dir() else 'a folder'}; {remedy}")
