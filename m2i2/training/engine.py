"""The DeepSpeed engine: a ZeRO-1/2 configuration checked against our settings, and the optimizer's state by name.

DeepSpeed partitions the optimizer's state in flat slices that fit one world size. `optimizer_state` gathers it under the
parameters' names and `load_optimizer_state` cuts it anew, so that a checkpoint fits any number of ranks.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2i2.data.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.files import read_object
from m2i2.training import shared_memory
from m2i2.training.kernels import steps_done

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
}


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration file; M2I2Error where it is missing or not a JSON object."""
    return read_object(path, "DeepSpeed configuration", " ds_configs/ holds ready ones.")


def complete_config(config: dict[str, Any], share: Share, clip: float, dtype: torch.dtype, source: str) -> dict[str, Any]:
    """The DeepSpeed configuration with our batch, clipping and precision filled in.

    Values that the file sets itself must agree with ours ("auto" always does); sections that we own are refused.
    """
    for section, instead in _OURS.items():
        if section in config:
            raise M2I2Error(f"{source} has a section {section!r}; leave it out and use {instead} instead.")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2):
        raise M2I2Error(f"{source} asks for ZeRO stage {stage}; this project trains with stage 1 or 2 (zero_optimization.stage).")
    ours = {
        "train_batch_size": share.batch,
        "train_micro_batch_size_per_gpu": share.micro_batch,
        "gradient_accumulation_steps": share.accumulation,
        "gradient_clipping": clip,
    }
    for key, value in ours.items():
        if config.get(key, "auto") not in ("auto", value):
            raise M2I2Error(
                f"{source} sets {key}={config[key]}, but training.batch={share.batch} on {share.ranks} rank(s) with "
                f"training.accumulation={share.accumulation} and optimizer.clip={clip} makes it {value}; "
                f'remove the key (or write "auto"), or change the settings.'
            )
    autocast = {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")}
    return {
        **config,
        **ours,
        "torch_autocast": {**autocast, "lower_precision_safe_modules": []} if autocast["enabled"] else {"enabled": False},
        "zero_allow_untested_optimizer": True,
    }


def start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """Initialise DeepSpeed around ``model`` (float32, on its device). Weights become rank 0's on every rank.

    The engine's ``shares_memory`` says whether they are one and the same memory (`shared_memory`).
    """
    import deepspeed  # late: joining the process group chooses its accelerator first

    _import_muon()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    engine.shares_memory = False
    if dist.get_backend() == "gloo":
        from deepspeed.runtime.zero import stage_1_and_2

        engine.shares_memory = shared_memory.share(engine.optimizer)
        finish = shared_memory.finish_step if engine.shares_memory else _broadcast_partitions
        stage_1_and_2.all_gather_dp_groups = finish
    _save_memory(engine.optimizer)
    return engine


def _import_muon() -> None:
    """DeepSpeed looks at every optimizer whether it is Muon, and imports torch's compiler for Muon's sake: 2 s saved."""
    from deepspeed.runtime import compiler

    decorator, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = decorator


def _broadcast_partitions(*, partitioned_param_groups: list[list[Tensor]], dp_process_group: list[Any], **_: Any) -> None:
    """Give every rank every other's updated weights: DeepSpeed's ``all_gather_dp_groups`` for gloo between machines.

    Gloo's gathering into one tensor copies it all once more: 3 s instead of 0.3 a step for 0.9 GB on two ranks of one machine.
    """
    for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, part in enumerate(parts):
            dist.broadcast(part.detach(), dist.get_global_rank(group, rank), group=group)


def _save_memory(zero: Any) -> None:
    """Do without two copies that DeepSpeed makes for half-precision weights and needs not for float32 ones.

    The master weights become the rank's own part of the weights themselves (4 bytes a parameter over the number of ranks),
    and gradients are added to the flat partition at once instead of being kept and concatenated (the same again in ZeRO-2).
    That partition stays from step to step: made anew in the middle of each, it tears holes into the heap of a CPU process.
    """
    for group, partition in enumerate(zero.single_partition_of_fp32_groups):
        own = zero.parallel_partitioned_bit16_groups[group][dist.get_rank()]
        if own.dtype == partition.dtype and own.device == partition.device:
            partition.data = own
    zero._link_all_hp_params()
    if zero.partition_gradients and not zero.cpu_offload:
        zero._use_compact_grad_partition_buffer = lambda group: True
        build, built = zero._build_compact_grad_partition_buffer, {}

        def rebuild(group: int) -> Any:
            if group not in built:
                built[group] = build(group)
            built[group].flat_partition.zero_()
            return type(built[group])(list(built[group]), built[group].flat_partition)

        zero._build_compact_grad_partition_buffer = rebuild


def set_learning_rate(engine: Any, lr: float) -> None:
    """Learning rate of every parameter group for the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def _names(engine: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}


def _layout(engine: Any, group: int) -> list[tuple[str, int, torch.Size]]:
    """(name, offset, shape) of every parameter in the flat buffer of a parameter group."""
    zero, names = engine.optimizer, _names(engine)
    parameters, offsets = zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group]
    return [(names[id(p)], offset, p.shape) for p, offset in zip(parameters, offsets, strict=True)]


def optimizer_state(engine: Any) -> tuple[dict[str, Tensor], int] | None:
    """AdamW's moments as ``{"exp_avg.<parameter>": float32 tensor, ...}`` and its step count, on rank 0; None elsewhere.

    Collective. Before the first step there are no moments: an empty dictionary and 0.
    """
    zero = engine.optimizer
    gathered: dict[str, Tensor] = {}
    steps = 0
    for group, partition in enumerate(zero.single_partition_of_fp32_groups):
        state = zero.optimizer.state.get(partition, {})
        if "exp_avg" not in state:
            continue
        steps = steps_done(state, zero.optimizer.param_groups[group])
        for key in ("exp_avg", "exp_avg_sq"):
            mine = state[key].detach()
            pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
            dist.gather(mine, pieces, dst=0)
            if pieces is None:
                continue
            flat = torch.cat([piece.cpu() for piece in pieces])
            for name, offset, shape in _layout(engine, group):
                gathered[f"{key}.{name}"] = flat[offset : offset + shape.numel()].view(shape).clone()
    return (gathered, steps) if dist.get_rank() == 0 else None


def load_optimizer_state(engine: Any, moments: dict[str, Tensor], steps: int) -> None:
    """Give every rank its slice of the moments that `optimizer_state` gathered, whatever their number was then.

    The float32 master weights are taken anew from the module's weights, which must be loaded first.
    """
    zero = engine.optimizer
    for group, partition in enumerate(zero.single_partition_of_fp32_groups):
        rank, size = dist.get_rank(), partition.numel()
        with torch.no_grad():
            partition.copy_(zero.parallel_partitioned_bit16_groups[group][rank])
        if not moments:
            continue
        state = zero.optimizer.state[partition]
        state["step"] = torch.tensor(float(steps), device=partition.device)
        zero.optimizer.param_groups[group]["step"] = steps  # where apex counts
        for key in ("exp_avg", "exp_avg_sq"):
            flat = torch.zeros(size * dist.get_world_size())
            for name, offset, shape in _layout(engine, group):
                tensor = moments.get(f"{key}.{name}")
                if tensor is None or tensor.shape != shape:
                    found = "nothing" if tensor is None else tuple(tensor.shape)
                    raise M2I2Error(f"The checkpoint's optimizer state of {name} is {found}, not {tuple(shape)}.")
                flat[offset : offset + shape.numel()] = tensor.flatten()
            state[key] = flat[rank * size : (rank + 1) * size].to(partition.device)
