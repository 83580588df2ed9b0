"""``launchers/pretrain.py``: pretrain on image-caption shards, or on built-in demo data where none are given."""

import argparse
from collections.abc import Sequence

from m2i2.cli.settings import SettingsParser
from m2i2.config import PretrainingConfig
from m2i2.exits import guarded

DESCRIPTION = """Pretrain M2I2 on image-caption shards: masked image and language modelling, image-text matching and contrast.

Started plainly it is one process; `deepspeed --num_gpus N` (on a CPU machine too), torchrun or srun start several.
The same command resumes the run from its newest checkpoint."""

EXAMPLES = """examples:
  deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json
      on the built-in demo data, to see it work
  deepspeed --num_gpus 8 launchers/pretrain.py --deepspeed_config ds_configs/zero2.json \\
      --preset paper --shards shards/rocov2 --output runs/rocov2
  deepspeed --num_gpus 2 launchers/pretrain.py --deepspeed_config ds_configs/zero2.json --preset small \\
      --shards shards/rocov2 shards/iu_xray --output runs/small start.text=weights/minilm training.epochs=10
  deepspeed --num_gpus 8 launchers/pretrain.py --preset paper --shards s3://bucket/rocov2 --output runs/rocov2 \\
      data.cache_folder=/scratch/m2i2 data.cache_gb=100
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run(argv))


def parse(argv: Sequence[str] | None) -> tuple[PretrainingConfig, argparse.Namespace]:
    """Settings and options of a command line."""
    return SettingsParser(PretrainingConfig, "pretrain", DESCRIPTION, EXAMPLES).parse(argv, "tiny")


def run(argv: Sequence[str] | None) -> int:
    """The command without its guard: errors go to the caller."""
    config, arguments = parse(argv)

    from m2i2.workflows.pretraining import pretrain

    return pretrain(config, arguments.output, arguments.deepspeed_config, arguments.allow_fewer_ranks, arguments.preflight)
