"""``tools/compare.py``: whether one evaluation is better than another, and whether the two may be compared at all."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m2i2.evaluation.comparison import compare
from m2i2.exits import guarded
from m2i2.terminal import say

EXAMPLES = """examples:
  python tools/compare.py runs/scratch/evaluation-test-rank runs/pretrained/evaluation-test-rank
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Compare two results question by question: McNemar's exact test and the 95 % interval of the difference\n"
        "(bootstrap over images). Warns where protocol, clean-up, data or method differ.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("first", type=Path, help="a folder that evaluate.py wrote")
    parser.add_argument("second", type=Path, help="another one, on the same questions")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _compare(arguments.first, arguments.second))


def _compare(first: Path, second: Path) -> int:
    found = compare(first, second)
    for warning in found.warnings:
        say(f"warning: {warning}", file=sys.stderr)
    say(f"{found.questions} questions: first {found.accuracies[0]:.1f} %, second {found.accuracies[1]:.1f} %")
    say(
        f"second - first: {found.difference:+.1f} points, 95 % interval {found.interval[0]:+.1f} to {found.interval[1]:+.1f} "
        f"(bootstrap over images)"
    )
    say(f"right in the first only {found.only_first}, in the second only {found.only_second}; McNemar's exact p = {found.p:.3g}")
    return 0
