"""The report's section on goodput: how much of a run's time went into steps that count, and where the rest went."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from m2i2.training.goodput import KINDS, Row, summarise


def goodput(rows: Sequence[Row], log: Sequence[Row] = ()) -> dict[str, Any]:
    """What goodput.html.j2 shows of a run's ledger, and of slow ranks in its log; empty without a ledger (up to version 0.2)."""
    if not rows:
        return {}
    found = summarise(rows)
    lines = [{"what": KINDS.get(kind, kind), "seconds": found.spent[kind], "percent": 100 * part} for kind, part in found.eaten()]
    counted = {"what": "steps that count", "seconds": found.share * found.wall, "percent": 100 * found.share}
    return {"percent": 100 * found.share, "wall": found.wall, "starts": found.starts, "between": found.between} | {
        "lines": [counted, *lines],
        "slow": _slow(log),
    }


def _slow(log: Sequence[Row]) -> str:
    """Which rank was the slowest most often, where one was slow at all."""
    slow = [row for row in log if row.get("slowest_by", 0) >= 1.5]
    if not slow:
        return ""
    counts = Counter(row["slowest_rank"] for row in slow)
    rank, often = counts.most_common(1)[0]
    most = max(row["slowest_by"] for row in slow if row["slowest_rank"] == rank)
    return f"Rank {rank} was slower than the others in {often} of {len(log)} readings, by up to {most:.1f} times their time."
