"""The patch of DeepSpeed: it is called in training, and steps aside where DeepSpeed is not what it was written for."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

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

Outcome = tuple[tuple[str, ...], int, dict[str, np.ndarray]]


def train(rank: int, ranks: int, differs: bool) -> Outcome:
    """Two steps: remarks, calls of the patch, weights. ``differs``: whether DeepSpeed's gathering takes other arguments."""
    join()
    zero = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    calls, broadcast = 0, private.broadcast_partitions

    def counting(**options: Any) -> None:
        nonlocal calls
        calls += 1
        broadcast(**options)

    private.broadcast_partitions = counting
    if differs:
        gather = zero.all_gather_dp_groups
        zero.all_gather_dp_groups = lambda **options: gather(**options)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.Linear(70, 9))
    optimizer = adamw(model, OptimizerConfig(lr=1e-2, eps=1e-6), choose(torch.device("cpu")))
    engine = ShardedEngine(model, optimizer, complete_config(DEFAULT_CONFIG, Share(8, 1, rank, ranks), 0.5, "built-in"))
    for _ in range(2):
        data = torch.randn(8, 33, generator=torch.Generator().manual_seed(1))[rank::ranks]
        output = engine.forward(lambda: Output(model(data).square().mean(), {}, {}))  # noqa: B023
        engine.backward(output.loss)
        engine.micro_step()
    return engine.remarks[1:], calls, {k: v.numpy().copy() for k, v in model.state_dict().items()}


def test_the_patch_is_called_and_steps_aside_where_deepspeed_differs() -> None:
    usual, other = (on_ranks(2, train, differs) for differs in (False, True))
    for (remarks, calls, weights), (left_out, none, expected) in zip(usual, other, strict=True):
        assert not remarks and calls == 2
        assert len(left_out) == 1 and not none
        assert "gathering of weights is not replaced: all_gather_dp_groups takes (options)" in left_out[0]
        for name, tensor in expected.items():
            np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)


def test_what_checkpoints_need_is_required() -> None:
    class Empty:
        pass

    with pytest.raises(M2I2Error, match=r"its ZeRO optimizer has no single_partition_of_fp32_groups.*pip install 'deepspeed"):
        private.require_zero(Empty())
