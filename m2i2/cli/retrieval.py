"""``launchers/evaluate.py retrieval``: whether a pretrained model finds the caption of an image, and the image of a caption."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.cli.settings import add_model_options, cache_of
from m2i2.errors import M2I2Error

DESCRIPTION = """Let a pretrained model find the captions of held-out images, and the images of captions: recall@1, 5 and 10 and the
median rank, with 95 % intervals, by the contrast (ITC) alone and with its nearest put in order by the matching head (ITM),
beside chance. Equal images and equal captions count as right. Every folder of shards is a source with a table of its own."""

EXAMPLES = """examples:
  python launchers/evaluate.py retrieval --checkpoint runs/pretrained --shards shards/rocov2 shards/pairs
  python launchers/evaluate.py retrieval --checkpoint runs/pretrained/checkpoints/step-00001200 --shards shards/rocov2 --rerank 0
  python launchers/evaluate.py retrieval --checkpoint official.pth --tokenizer bert-base-uncased --shards shards/rocov2
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="evaluate.py retrieval",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="a pretraining run, a checkpoint of it, or an official .pth")
    add("--shards", required=True, nargs="+", metavar="DIR", help="caption shards made by tools/make_shards.py, or their URLs")
    add("--split", default="val", help="which pairs (%(default)s)")
    add("--pairs", type=int, default=1000, metavar="N", help="pairs of each source at most, evenly spaced (%(default)s)")
    add("--rerank", type=int, default=32, metavar="K", help="nearest that the matching head puts in order (%(default)s; 0: none)")
    add("--batch", type=int, default=32, help="images at a time (%(default)s)")
    add("--output", type=Path, metavar="JSON", help="where to write (default: RUN/retrieval-SPLIT.json)")
    add_model_options(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of a command line."""
    return parser().parse_args(argv)


def retrieval(arguments: argparse.Namespace) -> int:
    """The command without its guard."""
    from m2i2.workflows.evaluation import run_of
    from m2i2.workflows.retrieval import AskedPairs, load_pretrained, retrieve

    for name, least in (("pairs", 2), ("rerank", 0), ("batch", 1)):
        if getattr(arguments, name) < least:
            raise M2I2Error(f"--{name} {getattr(arguments, name)} must be at least {least}.")
    names = ("shards", "split", "pairs", "rerank", "batch", "precision")
    asked = AskedPairs(**{name: getattr(arguments, name) for name in names})
    pretrained = load_pretrained(arguments.checkpoint, arguments.tokenizer)
    output = arguments.output or run_of(arguments.checkpoint) / f"retrieval-{asked.split}.json"
    retrieve(pretrained, asked, output, cache_of(arguments))
    return 0
