"""Pretraining, from settings to a finished run."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from m2i2.config import AnsweringConfig, PretrainingConfig
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import read_index
from m2i2.data.text.cleaning import clean_caption
from m2i2.data.text.fit import fit_of, misfit
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same, train_tokenizer
from m2i2.distributed import on_first_rank
from m2i2.errors import M2I2Error
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start import start_pretraining
from m2i2.objectives.registry import BUILT_IN
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.evaluators import Evaluator
from m2i2.training.held_out import HeldOutPairs
from m2i2.training.processes import Process, leave
from m2i2.training.queue_age import QueueAge
from m2i2.training.retrieval import Retrieval
from m2i2.training.trainer import Trainer
from m2i2.training.validation import Validation
from m2i2.workflows.beginning import begin
from m2i2.workflows.run_folder import claim_run, record_start, resolved, stored_tokenizer
from m2i2.workflows.training_data import make_augmentation, make_loader


def pretrain(
    config: PretrainingConfig,
    folder: Path,
    deepspeed_config: Path | None = None,
    allow_fewer_ranks: bool = False,
    examine_nodes: bool = False,
) -> int:
    """Pretrain in ``folder``, from its newest checkpoint if it has one; returns the exit code. Collective.

    The last two arguments are those of `begin`.
    """
    config, runtime, stop = begin(
        config, folder, deepspeed_config, allow_fewer_ranks=allow_fewer_ranks, examine_nodes=examine_nodes
    )
    process = runtime.process
    corpus = Corpus.open(config.data.shards, config.data.split, "captions", config.data)
    start = resolved(config.start)
    tokenizer = _tokenizer(replace(config, start=start), corpus, folder)
    config = replace(config, text=replace(config.text, vocabulary_size=tokenizer.size))
    on_first_rank(lambda: _examine(corpus, tokenizer, config, process))
    if config.data.max_tokens > config.text.positions:
        raise M2I2Error(f"data.max_tokens={config.data.max_tokens} exceeds the model's text.positions={config.text.positions}.")
    rows = CaptionRows.of(config, make_augmentation(config.vision.image_size, config.data), tokenizer, process.ranks)
    loader = make_loader(corpus, rows, config.data, config.training, process, together=config.objectives.scope == "batch")
    torch.manual_seed(config.training.seed)
    student = PretrainingModel(config.vision, config.text, config.objectives)
    for line in start_pretraining(student, start):
        process.say(line)
    task = PretrainingTask(student, config, runtime.dtype)
    for one in task.objectives:
        if one.name not in BUILT_IN:
            process.say(f"Objective {one.name} of {one.loss.__module__}, weight {one.weight:g}.")
    claim_run(folder)
    evaluators = _evaluators(task, config, tokenizer, folder, process)
    trainer = Trainer(config, task, loader, runtime, folder, tokenizer.save, evaluators)
    trainer.resume()
    code = trainer.run(stop, begun=lambda: record_start(folder, config, process))
    leave()
    return code


def _tokenizer(config: PretrainingConfig, corpus: Corpus, run: Path) -> Tokenizer:
    """The run's own tokenizer, or the one that the settings name, or one trained on the captions (random text weights only)."""
    start = config.start
    if (stored := stored_tokenizer(run, start.tokenizer)) is not None:
        return stored
    if start.checkpoint and Path(start.checkpoint).is_dir():
        own = load_tokenizer(Path(start.checkpoint) / "tokenizer")
        if start.tokenizer:
            require_same(load_tokenizer(start.tokenizer), own, start.checkpoint)
        return own
    if start.tokenizer:
        return load_tokenizer(start.tokenizer)
    if start.text:
        return load_tokenizer(start.text)
    if start.checkpoint:
        raise M2I2Error(f"{start.checkpoint} carries no tokenizer; name the one it was trained with: start.tokenizer=...")
    texts = (clean_caption(text, config.data.max_words) for part in corpus.parts for text in part.texts())
    return train_tokenizer(texts, config.text.vocabulary_size)


def _examine(corpus: Corpus, tokenizer: Tokenizer, config: PretrainingConfig, process: Process) -> None:
    """Warn of a vocabulary that does not fit, by the first captions of each folder (shards behind a URL are not read for it)."""
    texts = (text for part in corpus.parts if part.storage.capacity is None for text in islice(part.texts(), 500))
    fits = {"captions": fit_of(tokenizer, (clean_caption(text, config.data.max_words) for text in texts))}
    if problem := misfit(fits, AnsweringConfig.max_unknown):
        process.say(f"Warning: {problem}")


def _evaluators(
    task: PretrainingTask, config: PretrainingConfig, tokenizer: Tokenizer, run: Path, process: Process
) -> list[Evaluator]:
    """What the settings ask to be measured; nothing, which is said, where the shards hold no pairs for it."""
    if not config.validation.every:
        return []
    split = config.validation.split
    storages = [storage_of(shards, config.data) for shards in config.data.shards]
    with_it = [storage for storage in storages if split in read_index(storage)["splits"]]
    if not with_it:
        process.say(f"No validation: the shards have no split {split!r} (validation.split).")
        return []
    corpus = Corpus.open(with_it, split, "captions")
    if len(corpus) < process.ranks:
        process.say(f"No validation: the split {split!r} holds {len(corpus)} pair(s), fewer than there are ranks.")
        return []
    pairs = HeldOutPairs(corpus, tokenizer, config, process)
    places = ", ".join(storage.place for storage in with_it)
    process.say(f"Validation every {config.validation.every} steps: {pairs.pairs} of {len(corpus)} pairs of {places}.")
    return [Validation(task, pairs, run), Retrieval(task, pairs, run), QueueAge(task, process)]
