"""Resuming where a GPU is lost and no other comes: on as many of the ranks as can share out the run's batch."""

import os
from dataclasses import replace
from pathlib import Path

from m2i2.config import C, PretrainingConfig
from m2i2.terminal import say
from m2i2.training.checkpoint import MANIFEST, Checkpoints, read_config, read_run_state


def on_fewer_ranks(config: C, run: Path) -> C:
    """The settings for the largest number of this start's ranks that divides the batch of ``run``; the other ranks end here.

    To be called before the ranks meet: it changes what the launcher said of their number. A rank's micro-batch gets no larger than
    it was; accumulation makes up for the ranks that are missing. Where the losses are those of the whole batch
    (objectives.scope=batch), so are the negatives. A run without a checkpoint, and one whose batch these ranks can share out as
    it is, are left alone. SystemExit on ranks that are left over.
    """
    folder = next((path for path in Checkpoints(run / "checkpoints").all() if (path / MANIFEST).exists()), None)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if folder is None or ranks == 1:
        return config
    stored, began = read_config(type(config), folder), int(read_run_state(folder).get("ranks", ranks))
    batch, accumulation = stored.training.batch, stored.training.accumulation
    by_micro_batch = isinstance(stored, PretrainingConfig) and stored.objectives.scope == "micro_batch"
    divided = batch // accumulation if by_micro_batch and accumulation > 1 else batch
    fitting = max(count for count in range(1, ranks + 1) if divided % count == 0)
    if not (by_micro_batch and accumulation > 1):
        most = max(1, batch // began // accumulation)
        share = batch // fitting
        accumulation = next(count for count in range(1, share + 1) if share % count == 0 and share // count <= most)
    rank = int(os.environ.get("RANK", "0"))
    if fitting < ranks and rank == 0:
        say(f"training.batch={batch} does not divide by {ranks} ranks: {fitting} go on, with training.accumulation={accumulation}.")
    if rank >= fitting:
        raise SystemExit(0)
    first_of_node = rank - int(os.environ.get("LOCAL_RANK", "0"))
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        if name in os.environ:
            os.environ[name] = str(min(int(os.environ[name]), fitting - first_of_node))
    os.environ["WORLD_SIZE"] = str(fitting)
    return replace(config, training=replace(config.training, batch=batch, accumulation=accumulation))
