"""``launchers/finetune.py``: finetune a pretrained model to answer questions."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from m2i2.cli.settings import SettingsParser
from m2i2.config import FinetuningConfig
from m2i2.errors import M2I2Error
from m2i2.exits import guarded

if TYPE_CHECKING:
    from m2i2.data.loading.corpus import Corpus
    from m2i2.data.loading.subset import SelectedSplit
    from m2i2.data.text.tokenizer import Tokenizer
    from m2i2.training.processes import Process

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

    import torch

    from m2i2.data.loading.loader import QuestionRows
    from m2i2.evaluation.selecting import SelectionScore
    from m2i2.models.start import start_answering
    from m2i2.models.vqa import VQAModel
    from m2i2.tasks.vqa import FinetuningTask
    from m2i2.training.processes import autocast_dtype, join, leave
    from m2i2.training.selecting import Selection
    from m2i2.training.stopping import StopFlag
    from m2i2.training.trainer import train
    from m2i2.workflows.preparation import claim_run, deepspeed_settings, demo_shards, make_augmentation, make_loader, resolved

    deepspeed_config, source = deepspeed_settings(arguments.deepspeed_config)
    process, folder = join(), arguments.output
    stop = StopFlag()
    if not config.data.shards:
        process.say("No --shards were given: training on the built-in demo data (drawn phantoms, not radiographs).")
        config = replace(config, data=replace(config.data, shards=(demo_shards("vqa", process),)))
    config, tokenizer = fitted(config, folder)
    rows = QuestionRows(
        augmentation=make_augmentation(config.vision.image_size, config.data),
        tokenizer=tokenizer,
        max_words=config.data.max_words,
        max_tokens=config.text.positions,
        normalisation=config.answering.normalisation,
    )
    dtype = autocast_dtype(config.training.precision, process.device)
    corpus, held = training_questions(config, process)
    selection = None
    if held is not None and len(held):
        score = SelectionScore(held, tokenizer, config.answering.normalisation, process, dtype)
        every = max(1, round(config.answering.select_every * (len(corpus) // config.training.batch)))
        selection = Selection(score, every)
    loader = make_loader(corpus, rows, config.data, config.training, process)
    torch.manual_seed(config.training.seed)
    student = VQAModel(config.vision, config.text)
    for line in start_answering(student, resolved(config.start), config.answering.decoder_start == "multimodal"):
        process.say(line)
    claim_run(folder, config, process)
    task = FinetuningTask(student, config, process, dtype)
    code = train(task, loader, config, deepspeed_config, source, folder, process, dtype, tokenizer.save, stop, selection)
    leave()
    return code


def training_questions(config: FinetuningConfig, process: "Process") -> "tuple[Corpus, SelectedSplit | None]":
    """The questions to train on under the run's protocol, and those that choose its best checkpoint (None: the last one is)."""
    from m2i2.data.loading.clean import clean_parts
    from m2i2.data.loading.corpus import Corpus
    from m2i2.data.shards.storage import storage_of

    if config.answering.protocol == "paper":
        return Corpus.open(config.data.shards, config.data.split, "vqa", config.data), None
    if len(config.data.shards) > 1 or config.data.split != "train":
        raise M2I2Error(
            "The protocol clean takes one folder of shards and its split train, because it must know which test set the "
            "questions belong to; finetune on one data set at a time, or with answering.protocol=paper."
        )
    shards = storage_of(config.data.shards[0], config.data)
    parts = clean_parts(shards, config.answering.selection, with_rewrites=config.answering.rewrites)
    process.say(f"Protocol clean: {', '.join(f'{name} {value}' for name, value in parts.counts.items())}.".replace("_", " "))
    return Corpus([parts.train]), parts.selection


def fitted(config: FinetuningConfig, run: Path) -> "tuple[FinetuningConfig, Tokenizer]":
    """The settings with the architecture of the checkpoint that they start from, and its tokenizer."""
    from m2i2.data.text.tokenizer import load_tokenizer, require_same, require_size
    from m2i2.models.start import official_architecture, stored_architecture
    from m2i2.models.weights import of_student, read_state
    from m2i2.training.checkpoint import find_checkpoint
    from m2i2.workflows.preparation import stored_tokenizer

    start = config.start
    tokenizer = stored_tokenizer(run, start.tokenizer)
    if start.checkpoint:
        path = find_checkpoint(start.checkpoint)
        if path.is_dir():
            vision, text = stored_architecture(path)
            stored = load_tokenizer(path / "tokenizer")
            if start.tokenizer:
                require_same(load_tokenizer(start.tokenizer), stored, str(path))
            tokenizer = tokenizer or stored
        else:
            vision, text = official_architecture(of_student(read_state(path)))
        config = replace(
            config,
            vision=replace(vision, image_size=config.vision.image_size),
            text=replace(
                text,
                dropout=config.text.dropout,
                attention_dropout=config.text.attention_dropout,
                decoder_depth=text.depth - text.fusion_layer,
            ),
        )
    if tokenizer is None:
        named = start.tokenizer or start.text
        if not named:
            raise M2I2Error(
                "Which tokenizer? Name a pretraining run with --checkpoint (it stores its own), or start.tokenizer=NAME_OR_FOLDER."
            )
        tokenizer = load_tokenizer(named)
    if start.checkpoint:
        require_size(tokenizer, config.text.vocabulary_size, start.checkpoint)
    return replace(config, text=replace(config.text, vocabulary_size=tokenizer.size)), tokenizer
