"""The DeepSpeed configuration: a ZeRO-1/2 file checked against our settings, and completed with them."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object

DEFAULT_CONFIG: dict[str, Any] = {
    "zero_optimization": {
        "stage": 2,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": False,
        "reduce_bucket_size": 8_000_000,
        "allgather_bucket_size": 50_000_000,
    },
    "steps_per_print": 1_000_000_000,
    "wall_clock_breakdown": False,
}
"""What ds_configs/zero2.json says, for installations without that folder."""

_OURS = {
    "optimizer": "the optimizer.* settings",
    "scheduler": "optimizer.lr, final_lr and warmup_epochs",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "torch_autocast": "training.precision",
    "activation_checkpointing": "training.checkpoint_activations",
    "tensorboard": "monitor.tensorboard",
    "wandb": "monitor.wandb",
    "csv_monitor": "log.jsonl in the run's folder",
    "comet": "monitor.wandb or monitor.tensorboard",
    "flops_profiler": "tools/benchmark.py",
}
"""Sections that are settings of this project, and which."""
_SWITCH, _COUNT, _FACTOR, _TYPE, _LOGGER, _ANY = (
    "true or false",
    "a whole number",
    "a number",
    "fp32, fp16 or bf16",
    "an object",
    "",
)
"""What a value may be. No key takes a path: DeepSpeed's sections that write files are among those that are refused."""
_KNOWN = {
    **dict.fromkeys(("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu"), _ANY),
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_clipping"), _ANY),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "prescale_gradients"), _SWITCH),
    **{"zero_allow_untested_optimizer": _SWITCH, "steps_per_print": _COUNT, "gradient_predivide_factor": _FACTOR},
    **{"communication_data_type": _TYPE, "comms_logger": _LOGGER},
}
_KNOWN_OF_ZERO = {
    **dict.fromkeys(("contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce"), _SWITCH),
    **dict.fromkeys(("allgather_partitions", "overlap_comm", "round_robin_gradients", "ignore_unused_parameters"), _SWITCH),
    **{"stage": _ANY, "offload_optimizer": _ANY, "reduce_bucket_size": _COUNT, "allgather_bucket_size": _COUNT},
}
_KNOWN_OF_LOGGER = {**dict.fromkeys(("enabled", "prof_all", "verbose", "debug"), _SWITCH), "prof_ops": "a list of names"}
_REPORTS = ("prescale_gradients", "wall_clock_breakdown", "memory_breakdown", "dump_state")
"""Switches that mean something in DeepSpeed's own engine only."""
_OFFLOAD = ("offload_param", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "zenflow")


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration file; M2I2Error where it is missing or not a JSON object."""
    return read_object(path, "DeepSpeed configuration", " ds_configs/ holds ready ones.")


def complete_config(config: Mapping[str, Any], share: Share, clip: float, source: str) -> dict[str, Any]:
    """The DeepSpeed configuration with our batch and clipping filled in.

    Values that the file sets itself must agree with ours ("auto" always does). Sections that are settings of this project, and
    keys that are not supported, are refused: M2I2Error.
    """
    for section, instead in _OURS.items():
        if section in config:
            raise M2I2Error(f"{source} has a section {section!r}; remove it and use {instead} instead.")
    _refuse_unknown(config, _KNOWN, source, "")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise M2I2Error(f'{source}: zero_optimization={shown(zero)} must be an object, such as {{"stage": 2}}.')
    if offload := [key for key in _OFFLOAD if key in zero]:
        raise M2I2Error(
            f"{source} asks for zero_optimization.{offload[0]}, which is not supported. To keep the optimizer's state in the CPU's "
            f'memory, write "offload_optimizer": {{"device": "cpu"}} in its place; training.checkpoint_activations=true saves more.'
        )
    host = zero.get("offload_optimizer", {"device": "none"})
    if not isinstance(host, Mapping) or host.get("device", "none") not in ("none", "cpu") or set(host) - {"device", "pin_memory"}:
        raise M2I2Error(
            f"{source} has zero_optimization.offload_optimizer={shown(host)}; what is supported is "
            f'{{"device": "cpu"}}, with "pin_memory" true or false.'
        )
    _refuse_unknown(zero, _KNOWN_OF_ZERO, source, "zero_optimization.")
    _check_values(config, _KNOWN, source, "")
    logger = config.get("comms_logger", {})
    _refuse_unknown(logger, _KNOWN_OF_LOGGER, source, "comms_logger.")
    _check_values(logger, _KNOWN_OF_LOGGER, source, "comms_logger.")
    _check_values(zero, _KNOWN_OF_ZERO, source, "zero_optimization.")
    if type(stage := zero.get("stage")) is not int or stage not in (1, 2):
        raise M2I2Error(
            f"{source} asks for ZeRO stage {shown(zero.get('stage'))}; this project trains with stage 1 or 2 "
            f"(zero_optimization.stage)."
        )
    ours = {
        "train_batch_size": share.batch,
        "train_micro_batch_size_per_gpu": share.micro_batch,
        "gradient_accumulation_steps": share.accumulation,
        "gradient_clipping": clip,
    }
    for key, value in ours.items():
        if config.get(key, "auto") not in ("auto", value):
            raise M2I2Error(
                f"{source} sets {key}={shown(config[key])}, but training.batch={share.batch} on {share.ranks} rank(s) with "
                f"training.accumulation={share.accumulation} and optimizer.clip={clip} makes it {value}; "
                f'remove the key (or write "auto"), or change the settings.'
            )
    micro_steps = {
        "train_micro_batch_size_per_gpu": share.batch // share.ranks // share.passes,
        "gradient_accumulation_steps": share.passes,
    }
    # PyTorch's AdamW steps on the host too; DeepSpeed's own would have to be compiled first
    host = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {**config, **ours, **micro_steps, **host}


def offloads(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer's state and the master weights are kept in the CPU's memory."""
    return config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"


class Partitioning(NamedTuple):
    """What a completed configuration asks of the engine of several ranks."""

    stage: int
    """Of ZeRO."""
    reduce_bucket: int
    """Numbers of gradients that are summed at a time."""
    gather_bucket: int
    """Numbers of weights that are sent at a time, by gloo."""
    reduce_scatter: bool
    """Whether NCCL scatters sums; else every rank receives all of them."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Partitioning":
        """Where the file says nothing, what DeepSpeed takes."""
        zero = config["zero_optimization"]
        reduce, gather = (int(zero.get(name, 5e8)) for name in ("reduce_bucket_size", "allgather_bucket_size"))
        return cls(zero["stage"], reduce, gather, zero.get("reduce_scatter", True))


def for_deepspeed_alone(config: Mapping[str, Any]) -> str:
    """What of a completed configuration only DeepSpeed's own engine does; empty: nothing."""
    found = {
        "zero_optimization.offload_optimizer": offloads(config),
        "communication_data_type": config.get("communication_data_type", "fp32") != "fp32",
        "gradient_predivide_factor": config.get("gradient_predivide_factor", 1) != 1,
        "comms_logger": config.get("comms_logger", {}).get("enabled", False),
        **{name: config.get(name, False) for name in _REPORTS},
    }
    return next((name for name, asked in found.items() if asked), "")


def _refuse_unknown(section: Mapping[str, Any], known: Collection[str], source: str, prefix: str) -> None:
    """M2I2Error for a key that DeepSpeed would ignore, or that this project was not tested with."""
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:100], known, n=1)
            hint = f"Did you mean {prefix}{near[0]}?" if near else f"The keys here are {', '.join(sorted(known))}."
            raise M2I2Error(f"{source} has a key {prefix}{shown(key)} that is not supported. {hint} Correct or remove it.")


def _check_values(section: Mapping[str, Any], known: Mapping[str, str], source: str, prefix: str) -> None:
    """M2I2Error for a value of another kind than its key takes; all keys are known."""
    for key, value in section.items():
        if known[key] and not _fits(value, known[key]):
            raise M2I2Error(f"{source}: {prefix}{key}={shown(value)} must be {known[key]}. Correct or remove it.")


def _fits(value: Any, kind: str) -> bool:
    if kind == _SWITCH:
        return isinstance(value, bool)
    if kind == _COUNT:
        number = isinstance(value, int | float) and not isinstance(value, bool)  # 5e8 is a number of elements too
        return number and 0 <= value <= 1 << 40 and value == int(value)
    if kind == _FACTOR:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1 << 40
    if kind == _TYPE:
        return value in ("fp32", "fp16", "bf16")
    if kind == _LOGGER:
        return isinstance(value, Mapping)
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
