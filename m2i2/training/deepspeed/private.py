"""Every use of DeepSpeed's private names. Written for DeepSpeed 0.19.8 and later, below 0.20.

What a checkpoint needs (`layout`, `masters`) must be there, or training does not start. The patches make ZeRO cheaper and
change no result: each checks first that what it replaces exists with the signature it was written for. Where that fails,
training runs without the patch and says so.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor, nn

from m2i2.backends.shared_memory import Exchange, common_memory
from m2i2.distributed import first_collective
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


# --- patches


class Unpatchable(Exception):
    """DeepSpeed differs from what a patch was written for."""


def apply_patches(zero: Any) -> tuple[bool, list[str]]:
    """Make ZeRO cheaper where DeepSpeed is as expected. Collective.

    Returns whether the ranks share their weights in memory, and a line for each patch that could not be applied.
    """
    import deepspeed

    tested = Version(OLDEST) <= Version(deepspeed.__version__) < Version(TOO_NEW)
    left_out = (
        []
        if tested
        else [f"DeepSpeed {deepspeed.__version__} was not tested with this version; tested: {OLDEST} to below {TOO_NEW}."]
    )
    shares = False

    def attempt(name: str, patch: Callable[[], bool]) -> bool:
        try:
            return patch()
        except Unpatchable as e:
            left_out.append(f"DeepSpeed's {name} is not replaced: {e}.")
            return False

    if dist.get_backend() == "gloo":
        shares = attempt("exchange of gradients and weights", lambda: share_memory(zero))
        finish = wait_for_all if shares else broadcast_partitions
        attempt("gathering of weights", lambda: replace_gathering(finish))
    attempt("copy of the master weights", lambda: alias_masters(zero))
    attempt("buffer of gradients", lambda: keep_gradient_partition(zero))
    return shares, left_out


def _expect(owner: Any, name: str, *parameters: str) -> Any:
    """The function ``name`` of ``owner``; Unpatchable unless it takes just these parameters (but for self)."""
    function = getattr(owner, name, None)
    if function is None:
        raise Unpatchable(f"it has no {name}")
    found = tuple(inspect.signature(function).parameters)
    if found != parameters:
        raise Unpatchable(f"{name} takes ({', '.join(found)}), not ({', '.join(parameters)})")
    return function


def _expect_attributes(zero: Any, *names: str) -> None:
    for name in names:
        if not hasattr(zero, name):
            raise Unpatchable(f"it has no {name}")


def alias_masters(zero: Any) -> bool:
    """Let the master weights be the rank's own slice of the weights themselves: half-precision weights need a copy, float32
    ones do not.

    Saves 4 / ranks bytes per parameter.
    """
    _expect_attributes(zero, "cpu_offload")
    if zero.cpu_offload:
        return False
    link = _expect(zero, "_link_all_hp_params")
    changed = False
    for group, partition in enumerate(masters(zero)):
        own = own_weights(zero, group)
        if own.dtype == partition.dtype and own.device == partition.device:
            partition.data = own
            changed = True
    link()
    return changed


def keep_gradient_partition(zero: Any) -> bool:
    """Add gradients to the flat partition at once, instead of keeping and concatenating them (ZeRO-2).

    That partition stays from step to step: allocated again in the middle of each, it would fragment the heap of a CPU process.
    """
    _expect_attributes(zero, "partition_gradients", "cpu_offload")
    if not zero.partition_gradients or zero.cpu_offload:
        return False
    _expect(zero, "_use_compact_grad_partition_buffer", "group_idx")
    build = _expect(zero, "_build_compact_grad_partition_buffer", "group_idx")
    built: dict[int, Any] = {}

    def rebuild(group_idx: int) -> Any:
        if group_idx not in built:
            built[group_idx] = build(group_idx)
        built[group_idx].flat_partition.zero_()
        return type(built[group_idx])(list(built[group_idx]), built[group_idx].flat_partition)

    zero._use_compact_grad_partition_buffer = lambda group_idx: True
    zero._build_compact_grad_partition_buffer = rebuild
    return True


def share_memory(zero: Any) -> bool:
    """Let the ranks of one machine share weights and exchange gradients in memory; False where they cannot. Collective.

    Sums are those of gloo: own values first, then the other ranks' in their order. What was one weight per rank becomes the
    same weight for all, so that a rank may write its part only between the last exchange of a step, when nobody reads weights
    any more, and `wait_for_all`.
    """
    _expect_attributes(zero, "cpu_offload", "communication_data_type")
    flats: list[Tensor] = zero.bit16_groups_flat
    plain = all(flat.dtype == torch.float32 and flat.device.type == "cpu" for flat in flats) and not zero.cpu_offload
    if dist.get_world_size() == 1 or not plain or zero.communication_data_type != torch.float32:
        return False
    update = _expect(zero, "_update_model_bit16_weights", "group_index")
    cut = _expect(zero, "get_data_parallel_partitions", "tensor", "group_id")
    _expect(
        zero, "allreduce_and_scatter", "bucket", "communication_data_type", "numel_per_bucket", "log", "divide", "process_group"
    )
    memory = common_memory([flat.numel() for flat in flats])
    if memory is None:
        return False
    for group, (part, flat) in enumerate(zip(memory.parts, flats, strict=True)):
        if dist.get_rank() == 0:
            part.copy_(flat)
        zero.bit16_groups_flat[group] = part
        update(group)
        zero.parallel_partitioned_bit16_groups[group] = cut(part, group)
    dist.barrier()
    exchange = Exchange(memory.slabs)

    def reduce(bucket: Iterable[Sequence[Any]], communication_data_type: torch.dtype, **options: Any) -> None:
        if communication_data_type != torch.float32 or options.get("divide", True):
            raise RuntimeError("DeepSpeed asks for a reduction that the exchange in memory does not do; please report this.")
        first_collective.note()
        exchange([(_owners(entry[0]), entry[1], entry[2] if len(entry) > 2 else None) for entry in bucket])

    zero.allreduce_and_scatter = reduce
    return True


def _owners(ranks: int | frozenset[int]) -> frozenset[int]:
    """The ranks that want the sum of a slice: one, or several."""
    return ranks if isinstance(ranks, frozenset) else frozenset((ranks,))


def replace_gathering(finish: Callable[..., None]) -> bool:
    """Let ``finish`` bring the updated weights to every rank, in the place of DeepSpeed's gathering."""
    module = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    if getattr(module, "all_gather_dp_groups", None) not in (wait_for_all, broadcast_partitions):
        expected = (
            "groups_flat",
            "partitioned_param_groups",
            "dp_process_group",
            "start_alignment_factor",
            "allgather_bucket_size",
        )
        _expect(module, "all_gather_dp_groups", *expected)
    module.all_gather_dp_groups = finish  # type: ignore[attr-defined]
    return True


def wait_for_all(**_: Any) -> None:
    """DeepSpeed's ``all_gather_dp_groups`` where weights are shared: wait until every rank has updated its part."""
    dist.barrier()


def broadcast_partitions(*, partitioned_param_groups: list[list[Tensor]], dp_process_group: list[Any], **_: Any) -> None:
    """Give every rank every other's updated weights: DeepSpeed's ``all_gather_dp_groups`` for gloo between machines.

    Gloo's gathering into one tensor copies it all once more: 3 s instead of 0.3 per step for 0.9 GB on two ranks of one machine.
    """
    for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, part in enumerate(parts):
            dist.broadcast(part.detach(), dist.get_global_rank(group, rank), group=group)
