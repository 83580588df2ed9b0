"""Half-precision copies of the weights: what autocast's casts compute, and nothing else of the model changes."""

from typing import Any

import pytest
import torch
from torch import nn

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.tasks.copies import HalfCopies
from m2i2.training.local import LocalEngine
from tests.unit.test_graphs import Tape, settings, state_of, trained


def engine_of(trainer: Any) -> LocalEngine:
    assert isinstance(trainer.engine, LocalEngine)
    return trainer.engine


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
def test_steps_are_those_of_autocast(kind: type[Any]) -> None:
    """To rounding: a weight that is read twice sums its gradients in half precision, as under a GPU's autocast.

    How the sums round depends on the processor. The queue's features, of length 1, may differ by some roundings of bfloat16.
    """
    plain, expected = trained(settings(kind, precision="bfloat16"), None)
    copied, losses = trained(settings(kind, precision="bfloat16", half_weights="on"), None)
    copies = engine_of(copied).copies
    assert engine_of(plain).copies is None, "a CPU's default"
    assert copies is not None and len(copies._runs()) <= 6 * (1 + len(copied.task.beside))
    for one, other in zip(expected, losses, strict=True):
        assert {n: float(x) for n, x in one.items()} == pytest.approx({n: float(x) for n, x in other.items()}, abs=0.003, rel=0.003)
    beside = plain.task.beside
    queued = {tensor.data_ptr() for tensor in beside["queue"].state_dict().values()} if "queue" in beside else set()
    for mine, theirs in zip(state_of(plain), state_of(copied), strict=True):
        assert mine.dtype == theirs.dtype
        bound = 2**-6 if mine.data_ptr() in queued else 3e-3
        torch.testing.assert_close(mine.double(), theirs.double(), atol=bound, rtol=0)


def test_replayed_steps_are_the_steps() -> None:
    config = settings(PretrainingConfig, precision="bfloat16", half_weights="on")
    (launched, losses), (taped, replayed) = trained(config, None), trained(config, tape := Tape())
    assert tape.recordings == 2
    assert [float(one["loss"]) for one in losses] == [float(other["loss"]) for other in replayed]
    assert all(map(torch.equal, state_of(launched), state_of(taped)))


class Tied(nn.Module):
    """A table whose rows are looked up and whose whole is a matrix, and layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.norm, self.other = nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.other.weight = self.one.weight


def test_a_module_has_its_copies_for_a_while() -> None:
    module = Tied()
    copies = HalfCopies([module], torch.bfloat16)
    weights = dict(module.named_parameters())
    with copies.in_use():
        assert module.one.weight is module.other.weight and module.one.weight.dtype == torch.bfloat16
        assert module.table.weight.dtype == module.norm.weight.dtype == torch.float32
    with pytest.raises(RuntimeError, match="same dtype"), copies.in_use():
        module.one(torch.ones(2, 4))
    assert all(after is weights[name] for name, after in module.named_parameters())
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    for times in (1, 2):
        with torch.no_grad():
            module.one.weight.add_(1)
        copies.refresh()
        with copies.in_use():
            assert torch.equal(module.one.weight, weights["one.weight"].bfloat16())
            module.other(module.one(torch.ones(2, 4, dtype=torch.bfloat16))).sum().backward()
        copies.collect(first=times == 1)
    assert module.one.weight.grad is not None and module.one.weight.grad.dtype == torch.float32
    once = torch.autograd.grad(module.other(module.one(torch.ones(2, 4))).sum(), module.one.weight)[0]
    assert (module.one.weight.grad > once).all(), "of both times"


def test_copies_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(M2I2Error, match=r"half_weights=on needs training\.precision=bfloat16"):
        trained(settings(PretrainingConfig, precision="float32", half_weights="on"), None)
