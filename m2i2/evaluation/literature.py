"""Published results beside ours: the rows of literature.json that belong to a data set, and what differs from our run."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("literature.json")


@cache
def literature() -> dict[str, Any]:
    """The file: its source, the protocol of all its rows, what M2I2's own rows were trained with, its tables and their rows."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def published(dataset: str, view: str, protocol: str) -> list[dict[str, Any]]:
    """The published rows (method, closed, open, overall in percent) of one view of a data set under a protocol, as printed."""
    book = literature()
    if protocol != book["protocol"]:
        return []
    return [row for row in book["rows"] if row["dataset"] == dataset and row["view"] == view]


def published_beside(protocol: str, questions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that may stand under our own: those of a table about the same questions, under the same protocol.

    ``questions``: ``dataset``, ``view``, ``split``, ``language`` and ``questions``, their number.
    """
    if dict(questions) not in literature()["tables"]:
        return []
    return published(questions["dataset"], questions["view"], protocol)


def differences_to_paper(configuration: Mapping[str, Any]) -> list[str]:
    """Where a finetuning run's settings differ from those of the published M2I2, and what no setting says."""
    found, setup = [], literature()["setup"]
    for key, theirs in setup.items():
        section, _, name = key.partition(".")
        if name and (ours := configuration.get(section, {}).get(name)) != theirs:
            found.append(f"{key} is {ours} here, {theirs} there")
    found.append(f"the published M2I2 starts from {setup['weights']} and pretrains on {setup['pretraining_pairs']:,} medical pairs")
    found.append("published numbers are the best of all epochs on the test set")
    return found
