"""``launchers/pretrain.py``: pretrain on image-caption shards, or on built-in demo data where none are given."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m2i2.commands.guard import guarded
from m2i2.commands.running import demo_shards, open_run, run_deepspeed_config
from m2i2.commands.settings import SettingsParser
from m2i2.config import PretrainingConfig
from m2i2.data.corpus import Corpus
from m2i2.data.loader import CaptionRows, Loader, Share
from m2i2.data.text import Tokenizer, clean_caption, load_tokenizer, train_tokenizer
from m2i2.data.transforms import Augmentation
from m2i2.errors import M2I2Error

DESCRIPTION = """Pretrain M2I2 on image-caption shards: masked image and language modelling, image-text matching and contrast.

Started plainly it runs one process; `deepspeed --num_gpus N` (on a CPU machine too), torchrun or srun start several.
The same command resumes a run from its newest checkpoint."""

EXAMPLES = """examples:
  deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json
      the built-in demo data, to see it work
  deepspeed --num_gpus 8 launchers/pretrain.py --deepspeed_config ds_configs/zero2.json \\
      --preset paper --shards shards/rocov2 --output runs/rocov2
  deepspeed --num_gpus 2 launchers/pretrain.py --deepspeed_config ds_configs/zero2.json --preset small \\
      --shards shards/rocov2 shards/iu_xray --output runs/small start.text=weights/minilm training.epochs=10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    config, arguments = SettingsParser(PretrainingConfig, "pretrain", DESCRIPTION, EXAMPLES).parse(argv, "tiny")
    deepspeed_config, source = run_deepspeed_config(arguments.deepspeed_config)

    from m2i2.training.processes import autocast_dtype, join, leave

    process = join()
    folder: Path = arguments.output
    if not config.data.shards:
        process.say("No --shards were given: training on the built-in demo data (drawn phantoms, not radiographs).")
        config = replace(config, data=replace(config.data, shards=(demo_shards("captions", process),)))
    corpus = Corpus.open(config.data.shards, config.data.split, "captions")
    tokenizer = _tokenizer(config, corpus, folder, process.first)
    config = replace(config, text=replace(config.text, vocabulary_size=tokenizer.size))
    if config.data.max_tokens > config.text.positions:
        raise M2I2Error(
            f"data.max_tokens={config.data.max_tokens} is more than the model's text.positions={config.text.positions}."
        )
    share = Share(config.training.batch, config.training.accumulation, process.rank, process.ranks)
    rows = CaptionRows(
        augmentation=Augmentation(
            size=config.vision.image_size,
            crop_scale=config.data.crop_scale,
            flip=config.data.flip,
            randaugment=config.data.randaugment,
        ),
        tokenizer=tokenizer,
        max_words=config.data.max_words,
        max_tokens=config.data.max_tokens,
        text_mask_ratio=config.objectives.text_mask_ratio,
        patches=config.vision.patches,
    )
    loader: Loader = Loader(
        corpus,
        rows,
        share,
        epochs=config.training.epochs,
        seed=config.training.seed,
        window=config.data.window,
        workers=config.data.workers,
        pin_memory=process.device.type == "cuda",
    )

    import torch

    from m2i2.models.pretraining import PretrainingModel
    from m2i2.training.loop import train
    from m2i2.training.pretraining import PretrainingTask

    torch.manual_seed(config.training.seed)
    student = PretrainingModel(config.vision, config.text, config.objectives)
    _start_weights(student, config, process.say)
    dtype = autocast_dtype(config.training.precision, process.device)
    open_run(folder, config, process)
    task = PretrainingTask(student, config, process, dtype, tokenizer.pad_id)
    code = train(task, loader, config, deepspeed_config, source, folder, process, dtype, tokenizer.save)
    leave()
    return code


if __name__ == "__main__":
    sys.exit(main())
