"""Record the golden runs again: ``python -m tests.golden`` writes golden.json, from one rank.

What is stored was recorded with version 0.1 (commit 79b589f), before the core was rewritten: it is the contract that the rewriting
keeps. Record again only where a change of the numbers is meant and explained in the changelog; ``--check`` only compares.
"""

import argparse
import json
import sys

import torch

from tests.golden import cases
from tests.golden.run import differences, run
from tests.golden.stored import FILE, stored


def main() -> int:
    """Record, or compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    found = {name: run(case, 0, 1) for name, case in cases.CASES.items()}
    if not check:
        FILE.write_text(json.dumps(found, separators=(",", ":")).replace('],"', '],\n"').replace('},{"', '},\n{"') + "\n")
        print(f"{FILE}: {FILE.stat().st_size} bytes")
        return 0
    worst = 0.0
    for name, record in found.items():
        for difference, where in differences(record, stored()[name])[:3]:
            worst = max(worst, difference)
            print(f"{name:<24} {difference:9.1e}  {where}")
    return int(worst > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
