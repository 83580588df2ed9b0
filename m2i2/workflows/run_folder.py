"""A run's folder before its first step: who owns it, what it stores, which checkpoint and tokenizer it starts from."""

import json
from dataclasses import replace
from pathlib import Path

from m2i2.config import FinetuningConfig, PretrainingConfig, StartConfig
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same
from m2i2.distributed import on_first_rank
from m2i2.errors import M2I2Error
from m2i2.files import WRITING, append_text
from m2i2.options import to_dict
from m2i2.ownership import PRIVATE, require_own_folder
from m2i2.provenance import provenance
from m2i2.training.checkpoint import Checkpoints, find_checkpoint, write_json
from m2i2.training.locking import lock
from m2i2.training.processes import Process


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
            if "settings.json" not in present and any(name != "lock" and not name.endswith(WRITING) for name in present):
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


def resolved(start: StartConfig) -> StartConfig:
    """The same, with the run named in ``checkpoint`` replaced by its newest complete checkpoint. Collective."""
    if not start.checkpoint:
        return start
    return replace(start, checkpoint=on_first_rank(lambda: str(find_checkpoint(start.checkpoint))))


def stored_tokenizer(run: Path, given: str) -> Tokenizer | None:
    """The tokenizer of a run's newest checkpoint, where it has one; it must be the one ``given``, where one is. Collective."""
    newest = on_first_rank(lambda: Checkpoints(run / "checkpoints").newest()[0])
    if newest is None:
        return None
    tokenizer = load_tokenizer(newest / "tokenizer")
    if given:
        require_same(load_tokenizer(given), tokenizer, f"the run {run}")
    return tokenizer
