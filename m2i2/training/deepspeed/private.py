"""Every use of DeepSpeed's private names. Written for DeepSpeed 0.19.8 and later, below 0.20.

What a checkpoint needs (`layout`, `masters`) must be there, or training does not start. The patch makes gloo cheaper and changes no
result: it checks first that what it replaces exists with the signature it was written for. Where that fails, training runs
without it and says so.
"""

import importlib
import inspect
import sys
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor, nn

from m2i2.errors import M2I2Error

OLDEST, TOO_NEW = "0.19.8", "0.20"
_NEEDED = (
    *(
        "single_partition_of_fp32_groups",
        "parallel_partitioned_bit16_groups",
        "round_robin_bit16_groups",
        "round_robin_bit16_offsets",
    ),
    *("optimizer", "bit16_groups_flat"),
)
"""Attributes of a ZeRO-1/2 optimizer that checkpoints are written and read by."""


def prepare_import() -> None:
    """Skip what DeepSpeed would compile or import for features that are not used here.

    Its shared-memory all-reduce serves inference only; building it takes a compiler and a minute. And it asks of every
    optimizer whether it is Muon, for whose sake it imports torch's compiler: 2 seconds.
    """
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    compiler = importlib.import_module("deepspeed.runtime.compiler")
    decorator = getattr(compiler, "compile", None)
    if decorator is None or "deepspeed.runtime.zero.muon.muon_optimizer" in sys.modules:
        return
    compiler.compile = lambda: lambda function: function  # type: ignore[attr-defined]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    except Exception:  # without Muon there is nothing to spare
        return
    finally:
        compiler.compile = decorator  # type: ignore[attr-defined]


def admit(optimizer: type[torch.optim.Optimizer]) -> None:
    """Let ZeRO partition an optimizer of this class without a warning that it was not tested."""
    known = getattr(importlib.import_module("deepspeed.runtime.zero.utils"), "ZERO_SUPPORTED_OPTIMIZERS", None)
    if known is not None and optimizer not in known:
        known.append(optimizer)


def require_zero(zero: Any) -> None:
    """M2I2Error where a ZeRO-1/2 optimizer lacks what checkpoints need."""
    if missing := [name for name in _NEEDED if not hasattr(zero, name)]:
        import deepspeed

        raise M2I2Error(
            f"DeepSpeed {deepspeed.__version__} is not supported: its ZeRO optimizer has no {', '.join(missing)}. "
            f"Install one that is: pip install 'deepspeed>={OLDEST},<{TOO_NEW}'."
        )


class Placed(NamedTuple):
    """A parameter in the flat buffer of its group."""

    parameter: nn.Parameter
    offset: int


def layout(zero: Any, group: int) -> list[Placed]:
    """Every parameter of a parameter group, and where it begins in the group's flat buffer."""
    pairs = zip(zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True)
    return [Placed(parameter, offset) for parameter, offset in pairs]


def masters(zero: Any) -> list[Tensor]:
    """This rank's slice of the float32 master weights, for each parameter group: what the inner optimizer steps."""
    slices: list[Tensor] = zero.single_partition_of_fp32_groups
    return slices


def own_weights(zero: Any, group: int) -> Tensor:
    """This rank's slice of a group's weights themselves."""
    weights: Tensor = zero.parallel_partitioned_bit16_groups[group][dist.get_rank()]
    return weights


def inner_optimizer(zero: Any) -> torch.optim.Optimizer:
    """The optimizer that ZeRO partitions."""
    optimizer: torch.optim.Optimizer = zero.optimizer
    return optimizer


# --- a patch


class Unpatchable(Exception):
    """DeepSpeed differs from what a patch was written for."""


def apply_patches() -> tuple[str, ...]:
    """Send updated weights by broadcasts over gloo, where DeepSpeed is as expected; returns what a user must know."""
    import deepspeed

    remarks = []
    if not Version(OLDEST) <= Version(deepspeed.__version__) < Version(TOO_NEW):
        remarks.append(f"DeepSpeed {deepspeed.__version__} was not tested with this version; tested: {OLDEST} to below {TOO_NEW}.")
    if dist.get_backend() == "gloo":
        try:
            replace_gathering()
        except Unpatchable as e:
            remarks.append(f"DeepSpeed's gathering of weights is not replaced: {e}.")
    return tuple(remarks)


def replace_gathering() -> None:
    """Let `broadcast_partitions` bring the updated weights to every rank, in the place of DeepSpeed's gathering."""
    module = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    function = getattr(module, "all_gather_dp_groups", None)
    if function is None:
        raise Unpatchable("it has no all_gather_dp_groups")
    found = tuple(inspect.signature(function).parameters)
    if function is not broadcast_partitions and found != _GATHERING:
        raise Unpatchable(f"all_gather_dp_groups takes ({', '.join(found)}), not ({', '.join(_GATHERING)})")
    module.all_gather_dp_groups = broadcast_partitions  # type: ignore[attr-defined]


_GATHERING = (
    "groups_flat",
    "partitioned_param_groups",
    "dp_process_group",
    "start_alignment_factor",
    "allgather_bucket_size",
)


def broadcast_partitions(*, partitioned_param_groups: list[list[Tensor]], dp_process_group: list[Any], **_: Any) -> None:
    """Give every rank every other's updated weights: DeepSpeed's ``all_gather_dp_groups`` for gloo between machines.

    Gloo's gathering into one tensor copies it all once more: 3 s instead of 0.3 per step for 0.9 GB on two ranks of one machine.
    """
    for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, part in enumerate(parts):
            dist.broadcast(part.detach(), dist.get_global_rank(group, rank), group=group)
