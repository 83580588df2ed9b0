"""``tools/demo.py``: the main job end to end on synthetic images, on whatever the machine has."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.exits import guarded

DESCRIPTION = """The main job end to end on synthetic images: shards, pretraining, finetuning, evaluation, report. It trains on one
rank for each GPU (1, 2, 4 or 8 of them), or on two ranks of the CPU. Started again, it goes on where it stopped. It needs a
checkout of the project."""

EXAMPLES = """examples:
  python tools/demo.py
  python tools/demo.py --output /scratch/demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="where all is written (%(default)s)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _demo(arguments.output))


def _demo(output: Path) -> int:
    from m2i2.demo.chain import run_demo

    return run_demo(output)
