"""The long run of the fuzzers: ``python -m tests.fuzz --seed 1000000 --inputs 5000`` tries so many inputs a reader.

Inputs come in portions, each with a seed of its own and in a process of its own. With ``--log`` a run that was stopped goes on
where it was. A finding is kept, and the run goes on.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.fuzz.harness import Count, portion
from tests.fuzz.readers import READERS


def main() -> int:
    """Try every reader; 1 where an input ended in anything but our error."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, metavar="N", help="inputs a reader (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first portion; the next count on (%(default)s)")
    parser.add_argument("--portion", type=int, default=1000, metavar="N", help="inputs a seed (%(default)s)")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only this one (may be repeated)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="JSON Lines of the portions; those in it are not repeated")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="DIR", help="(%(default)s)")
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    done: dict[tuple[str, int], dict[str, float]] = {}
    if arguments.log and arguments.log.exists():
        done = {(row["reader"], row["seed"]): row for row in map(json.loads, arguments.log.read_text().splitlines())}
    totals: dict[str, list[float]] = {name: [0, 0, 0, 0] for name in names}
    for number in range(-(-arguments.inputs // arguments.portion)):  # all readers in turn, so that a stopped run has tried each
        for name in names:
            seed = arguments.seed + number
            if (name, seed) not in done:
                begun, count = time.monotonic(), Count()
                count = portion(READERS[name], min(arguments.portion, arguments.inputs), seed, arguments.findings)
                row = {"tried": count.tried, "refused": count.refused, "findings": count.findings}
                done[name, seed] = {**row, "seconds": round(time.monotonic() - begun, 1)}
                if arguments.log:
                    with arguments.log.open("a") as f:
                        f.write(json.dumps({"reader": name, "seed": seed, **done[name, seed]}) + "\n")
            values = [done[name, seed][key] for key in ("tried", "refused", "findings", "seconds")]
            totals[name] = [a + b for a, b in zip(totals[name], values, strict=True)]
    print(f"{'reader':<34}{'tried':>10}{'malformed':>11}{'findings':>10}{'seconds':>9}")
    for name, total in {**totals, "all": [sum(column) for column in zip(*totals.values(), strict=True)]}.items():
        print(f"{name:<34}{total[0]:>10}{total[1]:>11}{total[2]:>10}{total[3]:>9.0f}")
    return 1 if any(total[2] for total in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
