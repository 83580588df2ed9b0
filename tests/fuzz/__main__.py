"""The long run of the fuzzers: ``python -m tests.fuzz --malformed 110000`` prints the inputs tried for every reader."""

import argparse
import sys
import time

from tests.fuzz.harness import Count, explore
from tests.fuzz.readers import READERS


def main() -> int:
    """Explore every reader with fresh inputs; the first finding ends the run with its smallest input."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--malformed", type=int, default=110_000, metavar="N", help="refused inputs to reach in all (%(default)s)")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only this one (may be repeated)")
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    goal, started, total = -(-arguments.malformed // len(names)), time.monotonic(), Count()
    print(f"{'reader':<28}{'tried':>10}{'malformed':>11}{'seconds':>9}")
    for name in names:
        count, begun = Count(), time.monotonic()
        while count.refused < goal:
            more = explore(READERS[name], min(5000, max(200, goal - count.refused)), fresh=True)
            count.tried, count.refused = count.tried + more.tried, count.refused + more.refused
        total.tried, total.refused = total.tried + count.tried, total.refused + count.refused
        print(f"{name:<28}{count.tried:>10}{count.refused:>11}{time.monotonic() - begun:>9.0f}", flush=True)
    print(f"{'all':<28}{total.tried:>10}{total.refused:>11}{time.monotonic() - started:>9.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
