"""The report's section on goodput: how much of a run's time went into steps that count, and where the rest went."""

from collections.abc import Sequence
from typing import Any

from m2i2.training.goodput import KINDS, Row, summarise


def goodput(rows: Sequence[Row]) -> dict[str, Any]:
    """What goodput.html.j2 shows of a run's ledger; empty where the run has none (before version 0.3)."""
    if not rows:
        return {}
    found = summarise(rows)
    lines = [{"what": KINDS.get(kind, kind), "seconds": found.spent[kind], "percent": 100 * part} for kind, part in found.eaten()]
    counted = {"what": "steps that count", "seconds": found.share * found.wall, "percent": 100 * found.share}
    return {"percent": 100 * found.share, "wall": found.wall, "starts": found.starts, "between": found.between} | {
        "lines": [counted, *lines]
    }
