"""``launchers/finetune.py``: finetune a pretrained model to answer questions."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from m2i2.cli.settings import SettingsParser
from m2i2.config import FinetuningConfig
from m2i2.exits import guarded

DESCRIPTION = """Finetune M2I2 to answer questions about images, generatively.

The model comes from a pretraining run (--checkpoint), with its architecture and its tokenizer; without one, from the
start.* settings. The same command resumes the run from its newest checkpoint."""

EXAMPLES = """examples:
  deepspeed --num_gpus 8 launchers/finetune.py --deepspeed_config ds_configs/zero2.json --preset paper \\
      --checkpoint runs/rocov2 --shards shards/vqa_rad --output runs/rad
  python launchers/finetune.py --preset small --checkpoint runs/small --shards shards/slake \\
      --output runs/slake answering.distillation=0 training.epochs=20
  python launchers/finetune.py --preset small --checkpoint runs/small --shards shards/vqa_rad --output runs/rad \\
      answering.protocol=clean
  python launchers/finetune.py --preset paper --checkpoint official.pth --shards shards/vqa_rad --output runs/rad \\
      start.tokenizer=bert-base-uncased
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run(argv))


def parse(argv: Sequence[str] | None) -> tuple[FinetuningConfig, argparse.Namespace]:
    """Settings and options of a command line."""
    settings = SettingsParser(FinetuningConfig, "finetune", DESCRIPTION, EXAMPLES)
    settings.parser.add_argument("--checkpoint", metavar="RUN", help="a pretraining run, a checkpoint of it, or an official .pth")
    config, arguments = settings.parse(argv, "tiny")
    if arguments.checkpoint:
        config = replace(config, start=replace(config.start, checkpoint=arguments.checkpoint))
    return config, arguments


def run(argv: Sequence[str] | None) -> int:
    """The command without its guard: errors go to the caller."""
    config, arguments = parse(argv)

    from m2i2.workflows.finetuning import finetune

    return finetune(config, arguments.output, arguments.deepspeed_config, arguments.allow_fewer_ranks, arguments.preflight)
