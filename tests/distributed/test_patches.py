"""The patches of DeepSpeed: each is called in training, and each steps aside where DeepSpeed is not what it was written for."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from m2i2.backends import shared_memory
from m2i2.backends.choice import choose
from m2i2.config import OptimizerConfig
from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.tasks.task import Output
from m2i2.training.deepspeed import private
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, complete_config
from m2i2.training.deepspeed.engine import ShardedEngine
from m2i2.training.optimizer import adamw
from m2i2.training.processes import join
from tests.distributed.processes import on_ranks

Outcome = tuple[bool, tuple[str, ...], dict[str, int], dict[str, np.ndarray]]


def _counted(calls: Counter[str], owner: Any, name: str) -> None:
    """Count the calls of a function, which goes on as before."""
    function = getattr(owner, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        return function(*arguments, **options)

    setattr(owner, name, counting)


def _other_signature(*_: Any, **__: Any) -> None:
    raise AssertionError("DeepSpeed would not call it like this")


def train(rank: int, ranks: int, folder: str, changed: str) -> Outcome:
    """Two steps; ``changed`` names a function of DeepSpeed that takes other arguments than the patches expect, "" none."""
    join()
    shared_memory.FOLDER = Path(folder)
    zero = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    calls: Counter[str] = Counter()
    for name in ("wait_for_all", "broadcast_partitions"):
        _counted(calls, private, name)
    _counted(calls, shared_memory.Exchange, "__call__")
    if changed == "all_gather_dp_groups":
        gather = zero.all_gather_dp_groups
        zero.all_gather_dp_groups = lambda **options: gather(**options)
    elif changed:
        kept = getattr(zero.DeepSpeedZeroOptimizer, changed)
        setattr(zero.DeepSpeedZeroOptimizer, changed, lambda self, *all_of, **options: kept(self, *all_of, **options))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.Linear(70, 9))
    optimizer = adamw(model, OptimizerConfig(lr=1e-2, eps=1e-6), choose(torch.device("cpu")))
    engine = ShardedEngine(model, optimizer, complete_config(DEFAULT_CONFIG, Share(8, 1, rank, ranks), 0.5, "built-in"))
    inner = engine._zero
    built: list[Any] = []
    for _ in range(2):
        data = torch.randn(8, 33, generator=torch.Generator().manual_seed(1))[rank::ranks]
        output = engine.forward(lambda: Output(model(data).square().mean(), {}, {}))  # noqa: B023
        engine.backward(output.loss)
        partition = getattr(inner.averaged_gradients.get(0), "flat_partition", None)
        built.append(None if partition is None else partition.data_ptr())
        engine.micro_step()
    masters = {t.untyped_storage().data_ptr() for t in private.masters(inner)}
    calls["aliased"] = int(masters <= {t.untyped_storage().data_ptr() for t in inner.bit16_groups_flat})
    calls["same_partition"] = int(built[0] is not None and len(set(built)) == 1)
    return engine.shares_memory, engine.remarks, dict(calls), {k: v.numpy().copy() for k, v in model.state_dict().items()}


def test_every_patch_is_called() -> None:
    for shares, remarks, calls, _ in on_ranks(2, train, "/dev/shm", ""):
        assert shares and not remarks
        assert calls["__call__"] > 0 and calls["wait_for_all"] == 2 and "broadcast_partitions" not in calls
        assert calls["aliased"] and calls["same_partition"]


def test_without_shared_memory_weights_are_broadcast(tmp_path: Path) -> None:
    for shares, remarks, calls, _ in on_ranks(2, train, str(tmp_path / "missing"), ""):
        assert not shares and not remarks
        assert calls["broadcast_partitions"] == 2 and "wait_for_all" not in calls and "__call__" not in calls
        assert calls["aliased"] and calls["same_partition"]


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        (
            "allreduce_and_scatter",
            "gradients and weights is not replaced: allreduce_and_scatter takes (all_of, options)",
        ),
        ("_link_all_hp_params", "copy of the master weights is not replaced: _link_all_hp_params takes (all_of, options), not ()"),
        ("_build_compact_grad_partition_buffer", "buffer of gradients is not replaced: _build_compact_grad_partition_buffer takes"),
        ("all_gather_dp_groups", "gathering of weights is not replaced: all_gather_dp_groups takes (options)"),
    ],
)
def test_a_patch_steps_aside_where_deepspeed_differs(changed: str, remark: str) -> None:
    usual = on_ranks(2, train, "/dev/shm", "")
    for (_, remarks, _, weights), (*_, expected) in zip(on_ranks(2, train, "/dev/shm", changed), usual, strict=True):
        assert len(remarks) == 1 and remark in remarks[0]
        for name, tensor in expected.items():
            np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)


def test_what_checkpoints_need_is_required() -> None:
    class Empty:
        pass

    with pytest.raises(M2I2Error, match=r"its ZeRO optimizer has no single_partition_of_fp32_groups.*pip install 'deepspeed"):
        private.require_zero(Empty())
