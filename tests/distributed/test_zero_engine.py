"""ZeRO by buckets takes the steps of one rank: each stage, each way of gradients and weights, any number of ranks."""

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2i2.backends import shared_memory
from m2i2.backends.choice import choose
from m2i2.config import OptimizerConfig
from m2i2.tasks.copies import HalfCopies
from m2i2.tasks.task import Output
from m2i2.training import zero
from m2i2.training.deepspeed.configuration import Partitioning
from m2i2.training.flat import FlatEngine
from m2i2.training.local import LocalEngine
from m2i2.training.rows import InMemory, Reduced, Rows, Scattered
from m2i2.training.zero import ZeroEngine
from tests.distributed.processes import on_ranks

WAYS = (InMemory, Reduced, Scattered)
"""The last one is NCCL's; gloo has its collectives too."""
BUCKET = 200
"""Numbers: some parameters fill several buckets, and some buckets hold several parameters."""


class Network(nn.Sequential):
    """Its last layer is never used."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(33, 70), nn.GELU(), nn.LayerNorm(70), nn.Linear(70, 9), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def config(clip: float) -> OptimizerConfig:
    return OptimizerConfig(lr=1e-2, weight_decay=0.05, clip=clip, eps=1e-6)


def steps(engine: FlatEngine, model: nn.Module, rows: slice, passes: int, first: int = 0, count: int = 5) -> None:
    """Optimizer steps on this rank's rows of a batch of 24; the fourth is not finite."""
    dtype = next(model.parameters()).dtype
    for step in range(first, first + count):
        data = torch.randn(24, 33, generator=torch.Generator().manual_seed(step)).to(dtype)[rows]
        engine.set_learning_rate(1e-2 / (1 + step))
        for part in data.chunk(passes):
            bad = torch.nan if step == 3 and part[0, 0] == data[0, 0] else 1.0
            with torch.autocast("cpu", torch.bfloat16, enabled=engine.copies is not None):
                output = engine.forward(lambda: Output(model(part).float().square().mean() * bad, {}, {}))  # noqa: B023
            engine.backward(output.loss)
            stepped = engine.micro_step()
        assert stepped and bool(engine.applied) == (step != 3)


def alone(dtype: torch.dtype, passes: int, *, clip: float, half: bool = False) -> tuple[nn.Module, LocalEngine]:
    model = Network().to(dtype)
    engine = LocalEngine(model, config(clip), choose(torch.device("cpu")), passes)
    if half:
        engine.copies = HalfCopies([model], torch.bfloat16)
    return model, engine


def sharded(
    way: type[Rows], dtype: torch.dtype, stage: int, passes: int, *, clip: float, half: bool = False
) -> tuple[nn.Module, ZeroEngine]:
    chosen = zero.rows_of
    made: dict[type[Rows], Any] = {
        InMemory: chosen,
        Reduced: lambda flats, **options: Reduced(options["numbers"], options["shared"]),
        Scattered: lambda flats, **options: Scattered(),
    }
    zero.rows_of = made[way]
    try:
        model = Network().to(dtype)
        engine = ZeroEngine(
            model, config(clip), choose(torch.device("cpu")), passes, Partitioning(stage, BUCKET, 100, True), scaled=half
        )
    finally:
        zero.rows_of = chosen
    assert isinstance(engine._rows, way)
    if half:
        engine.copies = HalfCopies([model], torch.bfloat16)
    return model, engine


def _as_one(rank: int, ranks: int) -> list[tuple[str, float]]:
    """The largest difference from one rank's weights and moments, of each way."""
    found = []
    for dtype, passes in product((torch.float64, torch.float32), (1, 2)):
        model, engine = alone(dtype, passes, clip=0.5)
        steps(engine, model, slice(None), passes)
        expected, (moments, count, _) = list(model.parameters()), engine.moments()
        for stage, way in product((1, 2), WAYS):
            if way is InMemory and dtype == torch.float64:
                continue
            mine, one = sharded(way, dtype, stage, passes, clip=0.5)
            steps(one, mine, slice(rank, None, ranks), passes)
            pairs = list(zip(mine.parameters(), expected, strict=True))
            if (gathered := one.moments()) is not None:
                assert rank == 0 and gathered[1] == count == 4 and gathered[0].keys() == moments.keys()
                pairs += [(gathered[0][name], tensor) for name, tensor in moments.items()]
            found.append((f"{way.__name__} {stage} {dtype}", max(float((a - b).abs().max()) for a, b in pairs)))
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_it_takes_the_steps_of_one_rank(ranks: int) -> None:
    for found in on_ranks(ranks, _as_one):
        assert len(found) == 2 * 2 * 5
        for name, difference in found:
            assert difference < (1e-12 if "float64" in name else 2e-6), name


def _same_rows(rank: int, ranks: int) -> list[tuple[str, bool]]:
    """Every rank has the same rows, so that sums are exact: are weights those of one rank to the bit, with bfloat16 copies too?"""
    found = []
    for passes, half in product((1, 2), (False, True)):
        model, engine = alone(torch.float32, passes, clip=0.0, half=half)
        steps(engine, model, slice(0, 8), passes)
        for stage, way in product((1, 2), WAYS):
            mine, one = sharded(way, torch.float32, stage, passes, clip=0.0, half=half)
            steps(one, mine, slice(0, 8), passes)
            same = all(map(torch.equal, mine.parameters(), model.parameters()))
            found.append((f"{way.__name__} {stage} {passes} {half}", same))
    return found


def test_equal_ranks_are_one_to_the_bit() -> None:
    for found in on_ranks(2, _same_rows):
        assert [name for name, same in found if not same] == []


def _resumed(rank: int, ranks: int, moments: dict[str, np.ndarray], count: int, weights: list[np.ndarray]) -> list[np.ndarray]:
    mine, engine = sharded(InMemory, torch.float32, 2, 1, clip=0.0)
    with torch.no_grad():
        for parameter, stored in zip(mine.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(stored))
    engine.load_moments({name: torch.from_numpy(tensor) for name, tensor in moments.items()}, count)
    steps(engine, mine, slice(rank, None, ranks), 1, first=5, count=3)
    return [p.detach().numpy().copy() for p in mine.parameters()]


def test_moments_of_one_rank_fit_several() -> None:
    model, engine = alone(torch.float32, 1, clip=0.0)
    steps(engine, model, slice(None), 1)
    moments, count, _ = engine.moments()
    stored = {name: tensor.numpy() for name, tensor in moments.items()}, count, [p.detach().numpy() for p in model.parameters()]
    found = on_ranks(3, _resumed, *stored)
    steps(engine, model, slice(None), 1, first=5, count=3)
    for weights in found:
        for mine, expected in zip(weights, model.parameters(), strict=True):
            np.testing.assert_allclose(mine, expected.detach().numpy(), atol=2e-6, rtol=0)


def _without_memory(rank: int, ranks: int, folder: str) -> tuple[str, bool, list[str]]:
    shared_memory.FOLDER = Path(folder)
    engine = ZeroEngine(Network(), config(0.0), choose(torch.device("cpu")), 1, Partitioning(2, BUCKET, 100, True))
    left = os.listdir(folder) if Path(folder).is_dir() else []
    return type(engine._rows).__name__, engine.shares_memory, left


def test_where_ranks_see_no_common_memory_gloo_sends(tmp_path: Path) -> None:
    assert on_ranks(2, _without_memory, str(tmp_path)) == [("InMemory", True, [])] * 2
    assert on_ranks(2, _without_memory, str(tmp_path / "missing")) == [("Reduced", False, [])] * 2
