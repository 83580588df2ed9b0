"""``launchers/evaluate.py``: ask a finetuned model the questions of a split and score its answers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m2i2.cli import baselines, probe, retrieval
from m2i2.cli.settings import add_model_options, cache_of
from m2i2.errors import M2I2Error
from m2i2.exits import guarded

DESCRIPTION = """Ask a finetuned model every question of a split, score its answers under a protocol, and set the result beside
baselines that do not see the image. Writes results.json and predictions.jsonl. "evaluate.py retrieval --help": what a
pretrained model finds; "evaluate.py probe --help": what an image encoder knows; "evaluate.py baselines --help": what the
questions alone give away."""

EXAMPLES = """examples:
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad --mode rank-official --k 128
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad --protocol clean --generate-too
  python launchers/evaluate.py --checkpoint official_vqa.pth --tokenizer bert-base-uncased --shards shards/vqa_rad
  python launchers/evaluate.py --checkpoint runs/slake --shards shards/slake --split val --mode generate --image-dependence 0
  python launchers/evaluate.py --checkpoint runs/rad --shards s3://bucket/vqa_rad --cache-folder /scratch/cache
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="evaluate.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("settings", nargs="*", metavar="section.key=value", help="architecture of an official file that its shapes do not show")
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="a finetuning run, a checkpoint of it, or an official .pth")
    add("--shards", required=True, metavar="DIR", help="question shards made by tools/make_shards.py, or the URL of such a folder")
    add("--split", default="test", help="which questions (%(default)s); clean also has 'selection', which chose the checkpoint")
    add("--output", type=Path, metavar="DIR", help="where to write (default: RUN/evaluation-SPLIT-MODE, -clean under clean)")
    add("--protocol", default="paper", help="whose rules: paper or clean (%(default)s); see docs/evaluation.md")
    add(
        "--mode",
        default="rank",
        choices=["rank", "rank-official", "generate"],
        help="rank every candidate exactly (%(default)s), the official top k, or write answers by beam search",
    )
    add("--generate-too", action="store_true", help="let beam search answer beside a ranking, and count how often they agree")
    add("--k", type=int, default=128, help="candidates that rank-official re-ranks (%(default)s)")
    add("--beams", type=int, default=3, help="beams of generate (%(default)s)")
    add(
        "--image-dependence",
        type=int,
        default=1000,
        dest="dependence",
        metavar="N",
        help="ask at most N questions again with a blank, a noise and another question's image, which takes three times as long "
        "as these questions did (%(default)s; 0: leave it out)",
    )
    add("--batch", type=int, default=16, help="questions at a time (%(default)s)")
    add_model_options(made)
    return made


_OTHERS = {
    "retrieval": (retrieval.parse, retrieval.retrieval),
    "probe": (probe.parse, probe.probe),
    "baselines": (baselines.parse, baselines.baselines),
}
"""What a first word asks for instead: how its options are read, and the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in _OTHERS:
        read, command = _OTHERS[words[0]]
        options = read(words[1:])
        return guarded(lambda: command(options))
    arguments = parse(words)
    return guarded(lambda: _evaluate(arguments))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of a command line."""
    return parser().parse_intermixed_args(argv)


def run(argv: Sequence[str] | None) -> int:
    """The command without its guard: errors go to the caller."""
    return _evaluate(parse(argv))


def _evaluate(arguments: argparse.Namespace) -> int:
    from m2i2.evaluation.protocols import protocol
    from m2i2.workflows.answering import load_model
    from m2i2.workflows.evaluation import Asked, evaluate

    protocol(arguments.protocol)  # a wrong name is said before anything is loaded
    if arguments.dependence < 0:
        raise M2I2Error(f"--image-dependence {arguments.dependence} must not be negative; 0 leaves it out.")
    names = ("shards", "split", "protocol", "mode", "k", "beams", "generate_too", "batch", "precision", "dependence")
    asked = Asked(**{name: getattr(arguments, name) for name in names})
    loaded = load_model(arguments.checkpoint, arguments.tokenizer, arguments.settings, best=True)
    evaluate(loaded, asked, arguments.output, cache_of(arguments))
    return 0
