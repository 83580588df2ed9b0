"""Noise by counter: the same number for the same row and column, independent of the caller; uniform, and unrelated otherwise."""

import math

import pytest
import torch

from m2i2.tasks.noise import counter_start, gumbel_noise
from m2i2.tasks.task import Key

KEY = Key(seed=3, step=11, micro=1)
START = counter_start(KEY, 0)


def test_a_number_belongs_to_its_row_and_column() -> None:
    whole = gumbel_noise(START, torch.arange(64), torch.arange(48))
    part = gumbel_noise(START, torch.tensor([9, 40]), torch.arange(5, 30))
    assert torch.equal(part, whole[[9, 40], 5:30])
    assert torch.equal(whole, gumbel_noise(START, torch.arange(64), torch.arange(48)))


@pytest.mark.parametrize("other", [(Key(4, 11, 1), 0), (Key(3, 12, 1), 0), (Key(3, 11, 0), 0), (KEY, 1)])
def test_another_key_or_stream_gives_other_numbers(other: tuple[Key, int]) -> None:
    one, two = (gumbel_noise(counter_start(*what), torch.arange(200), torch.arange(200)).flatten() for what in ((KEY, 0), other))
    assert not (one == two).any()
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.02


def test_it_is_gumbel_noise() -> None:
    noise = gumbel_noise(START, torch.arange(1000), torch.arange(1000))
    assert noise.isfinite().all()
    uniform = (-(-noise).exp()).exp().flatten().sort().values
    assert float((uniform - torch.linspace(0, 1, len(uniform))).abs().max()) < 0.002, "Kolmogorov and Smirnov"
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.005)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_neighbours_are_unrelated() -> None:
    noise = gumbel_noise(START, torch.arange(400), torch.arange(400))
    for one, two in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise, noise.T)):
        pairs = torch.stack([one.flatten(), two.flatten()])[:, torch.arange(one.numel()) % 401 != 0]
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.02


def test_these_numbers_stay() -> None:
    """A resumed run draws what the uninterrupted one would have drawn, in later versions too."""
    expected = torch.tensor([EXPECTED])
    torch.testing.assert_close(
        gumbel_noise(counter_start(Key(0, 0, 0), 0), torch.tensor([5]), torch.arange(4)), expected, atol=1e-6, rtol=0
    )


EXPECTED = [2.0070584, 2.8134177, -0.0044006, 0.7386656]
