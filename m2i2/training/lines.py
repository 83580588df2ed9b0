"""JSON lines of a run that belong to its steps: a resumed run takes back those of the steps that it does again."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error
from m2i2.files import append_text, parse_json, replacing
from m2i2.ownership import open_plain


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """M2I2Error where the run's file or folder ``place`` cannot be written."""
    try:
        yield
    except OSError as e:
        raise M2I2Error(
            f"Cannot write to {place}: {e.strerror}. Make room or repair the folder, and start the same command again to resume."
        ) from e


class StepLines:
    """A file of JSON objects, one per line, each with its ``step``; for the rank that writes it."""

    def __init__(self, path: Path, done_steps: int) -> None:
        """Lines of steps after ``done_steps`` (from before a kill) are removed, and so is a line that a kill cut off."""
        self.path = path
        if path.exists() or path.is_symlink():
            self._cut(done_steps)

    def _cut(self, done_steps: int) -> None:
        with writing(self.path), replacing(self.path) as f:
            for row in self.rows():
                if row["step"] <= done_steps:
                    f.write(json.dumps(row).encode() + b"\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are there."""
        return self.of(self.path)

    @staticmethod
    def of(path: Path) -> Iterator[dict[str, Any]]:
        """The rows of a file, if it is there; OSError where it is a link or no regular file."""
        try:
            descriptor = open_plain(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        with open(descriptor, "rb") as f:
            for line in f:
                try:
                    row = parse_json(line)
                    yield {**row, "step": int(row["step"])}
                except (ValueError, KeyError, TypeError, OverflowError):
                    continue  # a line that a kill cut off

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append rows; M2I2Error where the file cannot be written."""
        with writing(self.path):
            append_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
