"""What pretraining and finetuning runs share before their first step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from m2i2.config import DataConfig, FinetuningConfig, PretrainingConfig, StartConfig, TrainingConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import CaptionRows, Loader, QuestionRows
from m2i2.data.loading.sampling import Share
from m2i2.data.records import Kind
from m2i2.data.shards.building import Encoding, build
from m2i2.data.shards.split import read_index
from m2i2.data.shards.storage import storage_of
from m2i2.data.sources import open_source
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same
from m2i2.errors import M2I2Error
from m2i2.options import to_dict
from m2i2.provenance import provenance
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.checkpoint import Checkpoints, find_checkpoint, write_json
from m2i2.training.deepspeed.engine import DEFAULT_CONFIG, read_deepspeed_config
from m2i2.training.locking import lock
from m2i2.training.pretraining_validation import PretrainingValidation
from m2i2.training.processes import Process

T = TypeVar("T")
DEMO = Path("runs") / "demo-shards"
_FIRST_FILES = {"lock", ".settings.json.writing"}
"""What a run has in its folder that was killed before its settings were there."""


def deepspeed_settings(path: Path | None) -> tuple[dict[str, Any], str]:
    """The DeepSpeed configuration, and what to call it in messages."""
    if path is None:
        return dict(DEFAULT_CONFIG), "the built-in ZeRO-2 configuration"
    return read_deepspeed_config(path), str(path)


def on_first_rank(process: Process, work: Callable[[], T]) -> T:
    """Let rank 0 do ``work`` and give every rank its result, or its error. Collective."""
    outcome: list[Any] = [None, None]
    if process.first:
        try:
            outcome[0] = work()
        except (M2I2Error, OSError) as e:
            outcome[1] = str(e)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise M2I2Error(outcome[1])
    return outcome[0]


def demo_shards(kind: Kind, process: Process) -> str:
    """The folder of the built-in demo data's shards, drawn now where they are not there yet. Collective."""
    folder = DEMO / kind

    def draw() -> None:
        build(open_source(kind, "phantoms", None), folder, Encoding(side=128), options={})

    on_first_rank(process, draw)
    return str(folder)


def claim_run(folder: Path, config: PretrainingConfig | FinetuningConfig, process: Process) -> None:
    """Make ``folder`` the run's own: its settings, versions, commit and command.

    M2I2Error where it holds other things, or another run that has not ended. Collective.
    """

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            present = {path.name for path in folder.iterdir()}
            if "settings.json" not in present and present - _FIRST_FILES:
                raise M2I2Error(f"{folder} holds other data; choose an empty or new folder as --output.")
            lock(folder)
            write_json(folder / "settings.json", to_dict(config))
            starts = folder / "starts.jsonl"
            with starts.open("a") as f:
                f.write(json.dumps({**provenance(), "ranks": process.ranks, "device": str(process.device)}) + "\n")
        except OSError as e:
            raise M2I2Error(f"Cannot write to {folder}: {e.strerror}. Choose another --output.") from e

    on_first_rank(process, claim)


def make_loader(
    corpus: Corpus,
    rows: CaptionRows | QuestionRows,
    data: DataConfig,
    training: TrainingConfig,
    process: Process,
) -> Loader[Any]:
    """The loader of this rank's share."""
    return Loader(
        corpus,
        rows,
        Share(training.batch, training.accumulation, process.rank, process.ranks),
        epochs=training.epochs,
        seed=training.seed,
        window=data.window,
        workers=data.workers,
        pin_memory=process.device.type == "cuda",
    )


def pretraining_validation(
    task: PretrainingTask, config: PretrainingConfig, tokenizer: Tokenizer, run: Path, process: Process
) -> PretrainingValidation | None:
    """What the settings ask to be measured; None, which is said, where the shards hold no pairs for it."""
    if not config.validation.every:
        return None
    split = config.validation.split
    storages = [storage_of(shards, config.data) for shards in config.data.shards]
    with_it = [storage for storage in storages if split in read_index(storage)["splits"]]
    if not with_it:
        process.say(f"No validation: the shards have no split {split!r} (validation.split).")
        return None
    corpus = Corpus.open(with_it, split, "captions")
    if len(corpus) < process.ranks:
        process.say(f"No validation: the split {split!r} holds {len(corpus)} pair(s), fewer than there are ranks.")
        return None
    validation = PretrainingValidation(task, corpus, tokenizer, config, process, run)
    places = ", ".join(storage.place for storage in with_it)
    process.say(f"Validation every {validation.every} steps: {validation.pairs} of {len(corpus)} pairs of {places}.")
    return validation


def make_augmentation(size: int, data: DataConfig) -> Augmentation:
    """The augmentation that the settings describe."""
    return Augmentation(size=size, crop_scale=data.crop_scale, flip=data.flip, randaugment=data.randaugment)


def resolved(start: StartConfig) -> StartConfig:
    """The same, with the run named in ``checkpoint`` replaced by its newest complete checkpoint."""
    return replace(start, checkpoint=str(find_checkpoint(start.checkpoint))) if start.checkpoint else start


def stored_tokenizer(run: Path, given: str) -> Tokenizer | None:
    """The tokenizer of a run's newest checkpoint, where it has one; it must be the one ``given``, where one is."""
    newest, _ = Checkpoints(run / "checkpoints").newest()
    if newest is None:
        return None
    tokenizer = load_tokenizer(newest / "tokenizer")
    if given:
        require_same(load_tokenizer(given), tokenizer, f"the run {run}")
    return tokenizer
