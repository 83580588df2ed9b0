"""``launchers/evaluate.py baselines``: what the questions of a data set give away without their images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.cli.settings import add_cache_options, cache_of

DESCRIPTION = """Score the baselines that see no image on the questions of a split: the most frequent answer to the same
question, a logistic regression on the words of the question, and the most frequent answer of all. It needs no model. What a
model has above them is what it may have seen in the images."""

EXAMPLES = """examples:
  python launchers/evaluate.py baselines --shards shards/vqa_rad --protocol clean
  python launchers/evaluate.py baselines --shards shards/slake --split val --output baselines.json
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="evaluate.py baselines",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--shards", required=True, metavar="DIR", help="question shards made by tools/make_shards.py, or the URL of such a folder")
    add("--split", default="test", help="which questions (%(default)s); clean also has 'selection'")
    add("--protocol", default="paper", help="whose rules: paper or clean (%(default)s); see docs/evaluation.md")
    add("--output", type=Path, metavar="JSON", help="where to write (default: nowhere)")
    add_cache_options(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of a command line."""
    return parser().parse_args(argv)


def baselines(arguments: argparse.Namespace) -> int:
    """The command without its guard."""
    from m2i2.workflows.baselines import score_baselines

    score_baselines(arguments.shards, arguments.split, arguments.protocol, arguments.output, cache_of(arguments))
    return 0
