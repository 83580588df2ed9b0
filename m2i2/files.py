"""Files written at once or not at all, and their hashes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def read_object(path: Path, what: str, remedy: str = "") -> dict[str, Any]:
    """A JSON object from a file that is ``what``; M2I2Error where it is missing or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise M2I2Error(f"Cannot read the {what} {path}: {e.strerror}.{remedy}") from e
    except ValueError as e:
        raise M2I2Error(f"The {what} {path} is not valid JSON: {e}.") from e
    if not isinstance(value, dict):
        raise M2I2Error(f"The {what} {path} must be a JSON object.")
    return value
