"""``launchers/evaluate.py probe``: what an image encoder knows, by logistic regression on its features."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.cli.settings import add_model_options, cache_of
from m2i2.errors import M2I2Error

DESCRIPTION = """Read modality, organ and plane off the features of a frozen image encoder by logistic regression: what it knows,
and, with --before, what it knew before its pretraining. The labels come from the questions (VQA-Med 2019's categories, SLAKE's
modality, organ and plane). Features are the [CLS] state and the mean of the patches."""

EXAMPLES = """examples:
  python launchers/evaluate.py probe --checkpoint runs/pretrained --before --shards shards/vqa_med_2019
  python launchers/evaluate.py probe --checkpoint runs/slake --shards shards/slake --targets modality plane --test val
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="evaluate.py probe",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="RUN",
        help="a run, a checkpoint, a .pth or a Hugging Face folder",
    )
    add("--before", action="store_true", help="probe the weights that the pretraining run started from as well")
    add("--shards", required=True, metavar="DIR", help="question shards made by tools/make_shards.py, or the URL of such a folder")
    add("--targets", nargs="+", default=["modality", "organ", "plane"], choices=["modality", "organ", "plane"], help="(all)")
    add("--train", default="train", metavar="SPLIT", help="whose images are learned from (%(default)s)")
    add("--test", default="test", metavar="SPLIT", help="whose images are asked for (%(default)s)")
    add("--batch", type=int, default=32, help="images at a time (%(default)s)")
    add("--output", type=Path, metavar="JSON", help="where to write (default: RUN/probe-NAME_OF_SHARDS.json)")
    add_model_options(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of a command line."""
    return parser().parse_args(argv)


def probe(arguments: argparse.Namespace) -> int:
    """The command without its guard."""
    from m2i2.workflows.evaluation import run_of
    from m2i2.workflows.probing import AskedImages, encoders, probe_encoders

    if arguments.batch < 1:
        raise M2I2Error(f"--batch {arguments.batch} must be at least 1.")
    names = ("shards", "train", "test", "targets", "batch", "precision")
    asked = AskedImages(**{name: getattr(arguments, name) for name in names})
    models = encoders(arguments.checkpoint, arguments.before, arguments.tokenizer)
    output = arguments.output or run_of(arguments.checkpoint) / f"probe-{Path(asked.shards).name}.json"
    probe_encoders(models, asked, output, cache_of(arguments))
    return 0
