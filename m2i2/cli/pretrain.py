"""``launchers/pretrain.py``: pretrain on image-caption shards, or on built-in demo data where none are given."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m2i2.cli.settings import SettingsParser
from m2i2.config import PretrainingConfig
from m2i2.errors import M2I2Error
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

    import torch

    from m2i2.data.loading.corpus import Corpus
    from m2i2.data.loading.loader import CaptionRows
    from m2i2.models.pretraining import PretrainingModel
    from m2i2.models.start import start_pretraining
    from m2i2.tasks.pretraining import PretrainingTask
    from m2i2.training.processes import autocast_dtype, join, leave
    from m2i2.training.stopping import StopFlag
    from m2i2.training.trainer import train
    from m2i2.workflows.preparation import (
        claim_run,
        deepspeed_settings,
        demo_shards,
        make_augmentation,
        make_loader,
        pretraining_validation,
        resolved,
    )

    deepspeed_config, source = deepspeed_settings(arguments.deepspeed_config)
    process, folder = join(), arguments.output
    stop = StopFlag()
    if not config.data.shards:
        process.say("No --shards were given: training on the built-in demo data (drawn phantoms, not radiographs).")
        config = replace(config, data=replace(config.data, shards=(demo_shards("captions", process),)))
    corpus = Corpus.open(config.data.shards, config.data.split, "captions", config.data)
    tokenizer = _tokenizer(config, corpus, folder)
    config = replace(config, text=replace(config.text, vocabulary_size=tokenizer.size))
    if config.data.max_tokens > config.text.positions:
        raise M2I2Error(f"data.max_tokens={config.data.max_tokens} exceeds the model's text.positions={config.text.positions}.")
    rows = CaptionRows(
        augmentation=make_augmentation(config.vision.image_size, config.data),
        tokenizer=tokenizer,
        max_words=config.data.max_words,
        max_tokens=config.data.max_tokens,
        text_mask_ratio=config.objectives.text_mask_ratio,
        patches=config.vision.patches,
    )
    loader = make_loader(corpus, rows, config.data, config.training, process)
    torch.manual_seed(config.training.seed)
    student = PretrainingModel(config.vision, config.text, config.objectives)
    for line in start_pretraining(student, resolved(config.start)):
        process.say(line)
    claim_run(folder, config, process)
    dtype = autocast_dtype(config.training.precision, process.device)
    task = PretrainingTask(student, config, process, dtype, tokenizer.pad_id)
    validation = pretraining_validation(task, config, tokenizer, folder, process)
    code = train(
        task, loader, config, deepspeed_config, source, folder, process, dtype, tokenizer.save, stop, validation=validation
    )
    leave()
    return code


def _tokenizer(config: PretrainingConfig, corpus: "Corpus", run: Path) -> "Tokenizer":  # type: ignore[name-defined]  # noqa: F821
    """The run's own tokenizer, or the one that the settings name, or one trained on the captions (random text weights only)."""
    from m2i2.data.text.cleaning import clean_caption
    from m2i2.data.text.tokenizer import load_tokenizer, train_tokenizer
    from m2i2.training.checkpoint import find_checkpoint
    from m2i2.workflows.preparation import stored_tokenizer

    start = config.start
    if (stored := stored_tokenizer(run, start.tokenizer)) is not None:
        return stored
    if start.tokenizer:
        return load_tokenizer(start.tokenizer)
    if start.checkpoint and Path(start.checkpoint).is_dir():
        return load_tokenizer(find_checkpoint(Path(start.checkpoint)) / "tokenizer")
    if start.text:
        return load_tokenizer(start.text)
    if start.checkpoint:
        raise M2I2Error(f"{start.checkpoint} carries no tokenizer; name the one it was trained with: start.tokenizer=...")
    texts = (clean_caption(text, config.data.max_words) for part in corpus.parts for text in part.texts())
    return train_tokenizer(texts, config.text.vocabulary_size)
