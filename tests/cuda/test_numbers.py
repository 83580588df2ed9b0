"""What a device computes: the numbers of version 0.1 and of the official code in double precision, and bfloat16 beside float32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2i2.backends.attention import KERNELS, fastest_order, kinds_of, measure, use
from m2i2.presets import preset
from tests.cuda.runs import losses_of, of_shards, trainer_of
from tests.golden.cases import CASES
from tests.golden.run import differences, run
from tests.golden.stored import stored
from tests.parity.comparison import EXACT, of_answering, of_pretraining

BOUNDS = {"mim": 0.003, "mlm": 0.01, "itm": 0.003, "itc": 0.01}
"""How far losses in bfloat16 may be from those in float32: docs/speed.md."""


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_in_double_precision_are_those_of_version_0_1(name: str, device: torch.device) -> None:
    worst = differences(run(CASES[name], 0, 1, device=device), stored()[name])
    assert worst[0][0] < EXACT, worst[:8]


@pytest.mark.parametrize("of", [of_pretraining, of_answering])
def test_a_step_in_double_precision_is_the_official_one(of: object, device: torch.device, parity_folder: Path) -> None:
    found = of(parity_folder, device)  # type: ignore[operator]
    assert len(found) > 100 and max(found.values()) < EXACT, sorted(found.items(), key=lambda one: -one[1])[:8]


@pytest.mark.parametrize("half_weights", ["on", "off"])
def test_200_steps_in_bfloat16_have_the_losses_of_float32(half_weights: str, device: torch.device, shards: Path) -> None:
    steps = 200 if device.type == "cuda" else 40  # of a CPU only this test's own code is asked
    exact = losses_of(trainer_of(of_shards(shards), Path()), steps)
    found = losses_of(trainer_of(of_shards(shards, precision="bfloat16", half_weights=half_weights), Path()), steps)
    assert sum(row["mlm"] for row in exact[-10:]) < sum(row["mlm"] for row in exact[:10]), "it learns"
    for name, bound in BOUNDS.items():
        farthest = max(abs(one[name] - other[name]) for one, other in zip(found[9::10], exact[9::10], strict=True))
        assert farthest <= bound, (name, farthest)


@pytest.mark.parametrize("stage", [0, 1])
def test_every_kernel_of_attention_computes_the_same(stage: int, device: torch.device) -> None:
    """Those that the device has, at the lengths of a step; they are put in an order by their time."""
    config = preset("tiny")[stage]
    config = replace(config, data=replace(config.data, max_tokens=16))
    kinds = kinds_of(config, 2)
    times = measure(kinds, device, torch.bfloat16)
    assert all(any(found[kind] is not None for found in times.values()) for kind in range(len(kinds)))
    order = fastest_order(times)
    assert set(order) == set(KERNELS)
    query, key, value = (torch.randn(2, 4, 40, 32, device=device) for _ in range(3))
    mask = torch.rand(2, 1, 1, 40, device=device) < 0.7
    mask[..., 0] = True
    exact = ((query @ key.transpose(2, 3) / 32**0.5).masked_fill(~mask, -torch.inf).softmax(-1)) @ value
    try:
        for one in (order, order[::-1]):
            use(one)
            half = (x.bfloat16() for x in (query, key, value))
            found = torch.nn.functional.scaled_dot_product_attention(*half, attn_mask=mask)
            torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0)
    finally:
        use(())
