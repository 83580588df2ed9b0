"""The answering model in double precision is the official code's, to 1e-9: states, losses, gradients."""

from pathlib import Path

import pytest

from tests.parity.comparison import EXACT, Differences, of_answering


@pytest.fixture(scope="module")
def found(parity_folder: Path) -> Differences:
    return of_answering(parity_folder)


def test_multimodal_states(found: Differences) -> None:
    assert found["fused_states"] < EXACT


@pytest.mark.parametrize("kind", ["plain", "distill"])
def test_losses_and_gradients(found: Differences, kind: str) -> None:
    assert found[f"loss_{kind}"] < EXACT
    gradients = {name: difference for name, difference in found.items() if name.startswith(f"grad_{kind}.")}
    assert len(gradients) > 60
    assert all(difference < EXACT for difference in gradients.values()), gradients


def test_the_key_surgery_is_the_official_one(found: Differences) -> None:
    starts = {name: difference for name, difference in found.items() if name.startswith("start.")}
    assert len(starts) > 100
    assert all(difference < EXACT for difference in starts.values()), starts
