"""A run's folder before its first step: who owns it, what it stores, which checkpoint and tokenizer it starts from."""

import json
from dataclasses import replace
from pathlib import Path

from m2i2.config import C, FinetuningConfig, PretrainingConfig, StartConfig
from m2i2.data.text.cleaning import Normalisation
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same
from m2i2.distributed import on_first_rank
from m2i2.errors import M2I2Error
from m2i2.excluded import EXCLUDED
from m2i2.files import WRITING, append_text, write_json
from m2i2.locking import lock
from m2i2.options import to_dict
from m2i2.ownership import PRIVATE, require_own_folder
from m2i2.presets import for_ranks
from m2i2.provenance import provenance
from m2i2.training.checkpoint import Checkpoints, find_checkpoint, read_config, read_run_state
from m2i2.training.processes import Process

_FIRST_FILES = {"lock", "tensorboard", "wandb", "wandb-id", EXCLUDED}
"""What a run has in its folder whose start was refused or killed before its settings were there."""


def claim_run(folder: Path) -> None:
    """Make ``folder`` the run's own until this process ends. A new folder is for its user alone (mode 0700).

    M2I2Error where it holds other things, or another run that has not ended, or where another user owns it or everybody may
    write in it. Collective.
    """

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            require_own_folder(folder, group=True)
            present = {path.name for path in folder.iterdir()}
            # a run that was killed before its settings were there leaves its lock and unfinished files
            if "settings.json" not in present and any(name not in _FIRST_FILES and not name.endswith(WRITING) for name in present):
                raise M2I2Error(f"{folder} holds other data; choose an empty or new folder as --output.")
            lock(folder)
        except OSError as e:
            raise M2I2Error(f"Cannot write to {folder}: {e.strerror}. Choose another --output.") from e

    on_first_rank(claim)


def record_start(folder: Path, config: PretrainingConfig | FinetuningConfig, process: Process) -> None:
    """Store the run's settings, versions, commit and command, after every check has passed. Collective."""

    def record() -> None:
        try:
            write_json(folder / "settings.json", to_dict(config))
            start = {**provenance(), "ranks": process.ranks, "device": str(process.device)}
            append_text(folder / "starts.jsonl", json.dumps(start) + "\n")
        except OSError as e:
            raise M2I2Error(f"Cannot write to {folder}: {e.strerror}. Choose another --output.") from e

    on_first_rank(record)


def settled(config: C, run: Path, process: Process) -> C:
    """The settings for this number of ranks, or, of a run that is resumed, with what it began with and cannot change. Collective.

    That is ``objectives.scope``, and the batch, where it was a preset's and made to divide by other ranks.
    """
    newest = on_first_rank(lambda: Checkpoints(run / "checkpoints").newest()[0])
    if newest is None:
        fitting = for_ranks(config, process.ranks)
        if fitting.training.batch != config.training.batch:
            process.say(
                f"The batch of preset {config.preset}, {config.training.batch}, does not divide by {process.ranks} ranks x "
                f"training.accumulation={config.training.accumulation}: it is {fitting.training.batch} here. "
                f"Other settings stay as they are, optimizer.lr too."
            )
        return fitting
    stored = read_config(type(config), newest, f" {run} belongs to that run: choose another --output.")
    ranks = read_run_state(newest).get("ranks")
    if isinstance(ranks, int) and ranks > 0 and stored.training.batch != config.training.batch:
        as_begun = replace(config, training=replace(config.training, accumulation=stored.training.accumulation))
        if for_ranks(as_begun, ranks).training.batch == stored.training.batch:
            process.say(f"The run keeps training.batch={stored.training.batch}, with which it began on {ranks} ranks.")
            config = replace(config, training=replace(config.training, batch=stored.training.batch))
    if isinstance(config, PretrainingConfig) and isinstance(stored, PretrainingConfig):
        kept = stored.objectives.scope
        if kept != config.objectives.scope:
            process.say(f"The run keeps objectives.scope={kept}, with which it began.")
        config = replace(config, objectives=replace(config.objectives, scope=kept))  # type: ignore[call-arg]
    return config


def resolved(start: StartConfig) -> StartConfig:
    """The same, with the run named in ``checkpoint`` replaced by its newest complete checkpoint. Collective."""
    if not start.checkpoint:
        return start
    return replace(start, checkpoint=on_first_rank(lambda: str(find_checkpoint(start.checkpoint))))


def stored_form(run: Path) -> Normalisation | None:
    """The form of answers that a finetuning run's newest checkpoint was trained with, where it has one. Collective."""
    newest = on_first_rank(lambda: Checkpoints(run / "checkpoints").newest()[0])
    return None if newest is None else read_config(FinetuningConfig, newest).answering.form


def stored_tokenizer(run: Path, given: str) -> Tokenizer | None:
    """The tokenizer of a run's newest checkpoint, where it has one; it must be the one ``given``, where one is. Collective."""
    newest = on_first_rank(lambda: Checkpoints(run / "checkpoints").newest()[0])
    if newest is None:
        return None
    tokenizer = load_tokenizer(newest / "tokenizer")
    if given:
        require_same(load_tokenizer(given), tokenizer, f"the run {run}")
    return tokenizer
