"""A rank of a preflight in which rank 1 is not as it should be: ``examined.py FAULT FOLDER``, with a launcher's environment."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from m2i2.exits import guarded
from m2i2.preflight import check, collectives, measures
from m2i2.training.processes import join, leave


def plant(fault: str) -> None:
    """Let this rank's products be wrong, or take three times as long and its clock be an hour ahead, or its measures never end."""
    right, clock = measures.product, time.time

    def wrong(x: Any, y: Any) -> Any:
        found = right(x, y)
        found[3, 5] += 1
        return found

    def slow(x: Any, y: Any) -> Any:
        began = time.perf_counter()
        found = right(x, y)
        time.sleep(2 * (time.perf_counter() - began))
        return found

    def stuck(x: Any, y: Any) -> Any:
        time.sleep(100_000)

    if fault == "slow":
        ahead: Any = type("Ahead", (), {"time": lambda: clock() + 3600, "perf_counter": time.perf_counter})
        collectives.time = ahead
    measures.product = {"wrong": wrong, "slow": slow, "stuck": stuck}[fault]


def main(fault: str, folder: Path) -> int:
    """Examine the ranks as a run in ``folder`` does."""
    process = join()
    if process.rank == 1:
        plant(fault)
    check.preflight(process, torch.float32, folder)
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1], Path(sys.argv[2]))))
