"""A pretraining run whose weights are random: enough for what reads a checkpoint, made in a moment."""

from dataclasses import replace
from pathlib import Path

import torch

from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.hub.conversion import Weights, write
from m2i2.models.pretraining import PretrainingModel
from m2i2.presets import preset


def write_random_pretraining(run: Path, shards: Path) -> None:
    """A run at 32 pixels with one checkpoint; its vocabulary is that of the split train of ``shards`` (captions)."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(ShardSplit.open(shards, "train", "captions").texts(), 200)
    base = preset("tiny")[0]
    config = replace(
        base,
        vision=replace(base.vision, image_size=32, patch_size=16, width=16, depth=1, heads=2),
        text=replace(base.text, vocabulary_size=tokenizer.size, width=16, intermediate=32, heads=2, initializer_range=0.3),
    )
    model = PretrainingModel(config.vision, config.text, config.objectives)
    write(Weights(config, dict(model.state_dict()), tokenizer=tokenizer), run / "checkpoints" / "step-00000001", "checkpoint")
