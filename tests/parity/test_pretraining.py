"""One pretraining step in double precision is the official code's, to 1e-9: losses, features, teacher, queue, gradients."""

from pathlib import Path

import pytest

from tests.parity.comparison import EXACT, Differences, of_pretraining


@pytest.fixture(scope="module")
def found(parity_folder: Path) -> Differences:
    return of_pretraining(parity_folder)


@pytest.mark.parametrize("name", ["mim", "mlm", "itm", "itc"])
def test_losses(found: Differences, name: str) -> None:
    assert found[f"loss_{name}"] < EXACT


@pytest.mark.parametrize("name", ["image_feat", "text_feat", "image_feat_m", "text_feat_m", "itm_logits"])
def test_features_and_matching_logits(found: Differences, name: str) -> None:
    assert found[name] < EXACT


def test_queue(found: Differences) -> None:
    assert max(found["image_queue_after"], found["text_queue_after"]) < EXACT
    assert found["queue_ptr_after"] == 0


def test_teacher(found: Differences) -> None:
    recorded = {name: difference for name, difference in found.items() if name.startswith("teacher_after.")}
    assert len(recorded) > 20
    assert all(difference < EXACT for difference in recorded.values()), recorded


def test_every_gradient(found: Differences) -> None:
    """Infinite where only one side trains the parameter."""
    gradients = {name: difference for name, difference in found.items() if name.startswith("grad.")}
    assert len(gradients) > 100
    assert all(difference < EXACT for difference in gradients.values()), gradients
