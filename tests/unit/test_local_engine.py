"""One process alone: AdamW over flat buffers takes the steps of AdamW over parameters, and decides on the device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2i2.backends.choice import choose
from m2i2.config import OptimizerConfig
from m2i2.errors import M2I2Error
from m2i2.tasks.flat import Flat, Pair, lay_out, together
from m2i2.training.local import LocalEngine
from m2i2.training.optimizer import adamw

CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.05, clip=0.5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 3))


def batches(count: int) -> list[Tensor]:
    return [torch.randn(6, 5, generator=torch.Generator().manual_seed(number)) for number in range(count)]


def trained(kernels: str, dtype: torch.dtype, accumulation: int = 1, *, scaled: bool = False) -> tuple[nn.Module, LocalEngine]:
    model = network().to(dtype)
    engine = LocalEngine(model, CONFIG, choose(torch.device("cpu"), kernels), accumulation, scaled=scaled)
    for step, x in enumerate(batches(12)):
        engine.set_learning_rate(CONFIG.lr / (1 + step))
        for part in x.to(dtype).chunk(accumulation):
            engine.backward(model(part).square().mean())
            stepped = engine.micro_step()
        assert stepped and engine.applied
    return model, engine


def by_parameters(dtype: torch.dtype) -> nn.Module:
    model = network().to(dtype)
    optimizer = adamw(model, CONFIG, choose(torch.device("cpu"), "plain"))
    for step, x in enumerate(batches(12)):
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.lr / (1 + step)
        model(x.to(dtype)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("kernels", "accumulation", "scaled"), [("fused", 1, False), ("fused", 3, False), ("plain", 2, False), ("fused", 2, True)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_it_takes_the_steps_of_adamw(kernels: str, accumulation: int, scaled: bool, dtype: torch.dtype, tolerance: float) -> None:
    model, _ = trained(kernels, dtype, accumulation, scaled=scaled)
    for mine, theirs in zip(model.parameters(), by_parameters(dtype).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kernels", ["fused", "plain"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing(kernels: str, bad: float) -> None:
    model, engine = trained(kernels, torch.float32)
    before = [p.clone() for p in model.parameters()]
    moments = {name: tensor.clone() for name, tensor in engine.moments().tensors.items()}
    engine.backward(model(batches(1)[0]).square().mean() * bad)
    engine.micro_step()
    assert not engine.applied
    assert all(map(torch.equal, before, model.parameters()))
    after = engine.moments()
    assert moments and after.steps == 12 and all(torch.equal(after.tensors[name], value) for name, value in moments.items())
    engine.backward(model(batches(1)[0]).square().mean())
    engine.micro_step()
    assert engine.applied and not any(map(torch.equal, before, model.parameters()))


def test_moments_go_to_another_engine_and_must_fit() -> None:
    model, engine = trained("fused", torch.float32)
    other = network()
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            theirs.copy_(mine)
    second = LocalEngine(other, CONFIG, choose(torch.device("cpu"), "fused"), 1)
    assert second.moments() == ({}, 0, True)
    moments, steps, _ = engine.moments()
    moments = {name: tensor.clone() for name, tensor in moments.items()}
    second.load_moments(moments, steps)
    for one, its_engine in ((model, engine), (other, second)):
        its_engine.set_learning_rate(1e-2)
        its_engine.backward(one(batches(1)[0]).square().mean())
        its_engine.micro_step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    with pytest.raises(M2I2Error, match=r"state of 0.weight is missing"):
        second.load_moments({name: t for name, t in moments.items() if "0.weight" not in name}, steps)


def test_the_loss_scale_falls_at_an_overflow_and_is_kept() -> None:
    model, engine = trained("fused", torch.float32, scaled=True)
    assert engine.scale is not None
    first = float(engine.scale.value)
    engine.backward(model(batches(1)[0]).square().mean() * torch.inf)
    engine.micro_step()
    assert not engine.applied and float(engine.scale.value) == first / 2
    state = engine.scale.state()
    _, other = trained("fused", torch.float32, scaled=True)
    assert other.scale is not None
    other.scale.load(state)
    assert other.scale.state() == state == {"value": first / 2, "quiet_steps": 0}


def test_what_lies_together_is_one() -> None:
    leaders = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (4,), (70,), (2, 2))]
    followers = [nn.Parameter(torch.randn_like(leader)) for leader in leaders]
    pairs: Any = [Pair(follower.detach(), leader.detach()) for follower, leader in zip(followers, leaders, strict=True)]
    assert len(together(pairs)) == 4, "each has memory of its own"
    values = [follower.detach().clone() for follower in followers]
    Flat([leaders[2], leaders[0], leaders[3]])
    now = lambda: [Pair(follower.detach(), leader.detach()) for follower, leader in zip(followers, leaders, strict=True)]  # noqa: E731
    assert len(together(now())) == 4, "the leaders lie together, their followers do not"
    lay_out([Pair(follower, leader.detach()) for follower, leader in zip(followers, leaders, strict=True)])
    assert all(map(torch.equal, values, followers)), "values stay"
    runs = together(now())
    assert len(runs) == 2 and sorted(run.leader.numel() for run in runs) == [4, 132]
    with torch.no_grad():
        for follower, leader in runs:
            follower.copy_(leader)
    assert all(map(torch.equal, followers, leaders)), "the space between them is nobody's"
