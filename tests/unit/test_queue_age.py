"""Features in a queue that reveal their age, and features that do not."""

import pytest
import torch
from torch.nn import functional as F

from m2i2.tasks.queue import FeatureQueue
from m2i2.training.queue_age import REVEALING, explained, oldest_first

SIZE, WIDTH, BATCH = 512, 16, 32


def filled(drift: float, steps: int) -> FeatureQueue:
    """A queue after ``steps`` pushes of random features that move by ``drift`` per step in one direction."""
    torch.manual_seed(0)
    queue, direction = FeatureQueue(SIZE, WIDTH), F.normalize(torch.randn(WIDTH), dim=0)
    for step in range(steps):
        ids = torch.arange(BATCH) + step * BATCH
        features = F.normalize(F.normalize(torch.randn(BATCH, WIDTH), dim=1) + drift * step * direction, dim=1)
        queue.push(features, features.flip(0), ids, ids.flip(0))
    return queue


@pytest.mark.parametrize("steps", [16, 21])
def test_rows_come_in_the_order_in_which_they_were_pushed(steps: int) -> None:
    queue = filled(0.0, steps)
    newest = torch.arange(steps * BATCH)[-SIZE:]
    assert torch.equal(torch.roll(queue.image_ids, -int(queue.pointer)), newest)
    first = int((queue.image_ids == newest[0]).nonzero())
    assert torch.equal(oldest_first(queue, "image")[0], queue.image[first])


@pytest.mark.parametrize("steps", [16, 21])
def test_features_that_do_not_move_reveal_nothing(steps: int) -> None:
    queue = filled(0.0, steps)
    assert all(abs(explained(oldest_first(queue, kind))) < 0.15 for kind in ("image", "text"))


@pytest.mark.parametrize("steps", [16, 21])
def test_features_that_move_reveal_their_age(steps: int) -> None:
    queue = filled(0.2, steps)
    assert all(REVEALING < explained(oldest_first(queue, kind)) <= 1 for kind in ("image", "text"))
    assert explained(queue.image[torch.randperm(SIZE)]) < 0.15, "in any other order there is nothing to predict"
