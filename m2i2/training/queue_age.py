"""Whether the features in the queue reveal their age, so that a part of the contrast can be solved without looking.

The rows of the queue were made by earlier states of the teacher, the features of the batch by its present one. While the
weights move fast, features from different steps differ even for the same input. A model can then rule out the queue's pairs by
their age; only the other pairs of the batch still require it to look at images and texts. The loss is low as long as the
learning rate is high, and rises when that falls. Measured in docs/experiments.md. MoCo (He et al., 2020, arXiv:1911.05722)
reports a lower accuracy if the teacher follows its student fast, and attributes it to inconsistent keys.
"""

import torch
from torch import Tensor

from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.queue import FeatureQueue
from m2i2.training.evaluators import Evaluator, Measured
from m2i2.training.processes import Process

REVEALING = 0.5
"""Share of the variance in age above which the run prints a warning."""
_ROWS_PER_WIDTH = 4
"""Rows that a fit needs for each number of a feature, so that it does not fit noise."""
_RIDGE = 1e-3
"""Penalty of the regression, as a share of the features' variance."""


class QueueAge(Evaluator):
    """How well a linear regression predicts the age of the queue's features: ``queue_age_image`` and ``queue_age_text``."""

    def __init__(self, task: PretrainingTask, process: Process) -> None:
        self.task, self.process, self.every = task, process, task.config.validation.every
        self._warned = False

    def measure(self, step: int) -> Measured:
        """R² of both kinds of features; nothing while the queue holds random rows, or is too short for its width."""
        queue = self.task.queue
        rows, width = queue.image.shape
        if rows // 2 < _ROWS_PER_WIDTH * width or bool((queue.image_ids == -1).any()):
            return Measured({})
        told = {f"queue_age_{kind}": explained(oldest_first(queue, kind)) for kind in ("image", "text")}
        most = max(told.values())
        if most > REVEALING and not self._warned:
            self._warned = True
            self.process.say(
                "Warning: the features in the queue reveal their age: a linear regression explains "
                f"{100 * most:.0f} % of the variance in age. The model can then rule out the queue's pairs by their "
                "age, and itc is low although little has been learned. Compare a run with objectives.queue=0."
            )
        return Measured(told)


def oldest_first(queue: FeatureQueue, kind: str) -> Tensor:
    """The queue's features [Q, D] of a kind (``image`` or ``text``) in the order in which they were pushed."""
    rows: Tensor = getattr(queue, kind)
    return torch.roll(rows, -int(queue.pointer), dims=0)


def explained(features: Tensor) -> float:
    """R², the share of the variance in a row's position (its age) that its features [n, D] explain.

    Fitted on even rows, measured on odd ones; both hold features of every step.
    """
    x = features.double()
    age = torch.arange(len(x), dtype=x.dtype, device=x.device) / len(x)
    x, age = x - x[::2].mean(0), age - age[::2].mean()
    products = x[::2].T @ x[::2]
    penalty = _RIDGE * products.diagonal().mean()
    weights = torch.linalg.solve(products + penalty * torch.eye(len(products), dtype=x.dtype, device=x.device), x[::2].T @ age[::2])
    left = (age[1::2] - x[1::2] @ weights).square().sum()
    return float(1 - left / age[1::2].square().sum())
