"""How a run begins, the same for pretraining and finetuning: its ranks, their examination, its data and settings."""

from dataclasses import replace
from pathlib import Path

from m2i2.config import C, PretrainingConfig
from m2i2.preflight.check import preflight
from m2i2.training.runtime import Runtime
from m2i2.training.stopping import StopFlag
from m2i2.workflows.fewer_ranks import on_fewer_ranks
from m2i2.workflows.run_folder import settled
from m2i2.workflows.training_data import demo_shards


def begin(
    config: C, folder: Path, deepspeed_config: Path | None, *, allow_fewer_ranks: bool, examine_nodes: bool
) -> tuple[C, Runtime, StopFlag]:
    """The settings as the run takes them, its ranks, and the flag of its stop signals. Collective.

    ``allow_fewer_ranks``: leave ranks out where the run's batch does not divide by their number. ``examine_nodes``: measure
    all ranks first, and refuse those that compute wrongly.
    """
    if allow_fewer_ranks:
        config = on_fewer_ranks(config, folder)
    runtime = Runtime.start(config.training, deepspeed_config)
    process, stop = runtime.process, StopFlag()
    if examine_nodes:
        preflight(process, runtime.dtype, folder)
    if not config.data.shards:
        process.say("No --shards were given: training on the built-in demo data (synthetic images, not medical ones).")
        shards = demo_shards("captions" if isinstance(config, PretrainingConfig) else "vqa")
        config = replace(config, data=replace(config.data, shards=(shards,)))
    return settled(config, folder, process), runtime, stop
