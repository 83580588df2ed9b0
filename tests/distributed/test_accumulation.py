"""Accumulation whose losses are those of the whole batch: equal to the step that is not accumulated, losses and every gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.config import ObjectivesConfig, PretrainingConfig, TextConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.masking import places_of
from m2i2.distributed import all_gather
from m2i2.models import ops
from m2i2.models.pretraining import PretrainingModel
from m2i2.tasks.task import Key
from tests.distributed.processes import on_ranks
from tests.distributed.test_objectives import BATCH, OBJECTIVES, TEXT, VISION, AsItIs, well_conditioned, whole_batch

Outcome = tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]


def rows_of(whole: CaptionBatch, first: int, count: int, length: int) -> CaptionBatch:
    """Some rows, their captions ``length`` long."""
    cut = {name: value[first : first + count] for name, value in vars(whole).items() if name not in ("unreadable", "places")}
    cut |= {name: cut[name][:, :length] for name in ("input_ids", "attention_mask", "masked_input_ids", "labels")}
    return CaptionBatch(**cut, places=torch.from_numpy(places_of(cut["labels"].numpy(), 0.15)))


def task_of(objectives: ObjectivesConfig, text: TextConfig) -> AsItIs:
    torch.manual_seed(0)
    student = well_conditioned(PretrainingModel(VISION, text, objectives)).double()
    task = AsItIs(student, PretrainingConfig(vision=VISION, text=text, objectives=objectives), torch.float64)
    task.queue.double()
    task._ramp.value = 0.4
    return task


def step(rank: int, ranks: int, objectives: ObjectivesConfig, accumulation: int, text: TextConfig = TEXT) -> Outcome:
    """One optimizer step on this rank's rows: losses, gradients and the queue, means over the ranks."""
    task, whole = task_of(objectives, text), whole_batch()
    rows = BATCH // ranks // accumulation
    batches = []
    for micro in range(accumulation):
        first = (rank * accumulation + micro) * rows
        longest = int(whole.attention_mask[first : first + rows].sum(1).max())
        length = 9 if accumulation == 1 or ranks > 1 else longest  # of micro-batches on one rank each has its own
        batches.append(rows_of(whole, first, rows, length))
    key = Key(5, 3, 0)
    found = task.forward(batches[0], key) if accumulation == 1 else task.forward_together(batches, key)
    found.loss.backward()
    task.end_step()
    losses = {"loss": found.loss, **found.losses}
    averages = {name: float(all_gather(loss.detach().reshape(1)).mean()) for name, loss in losses.items()}
    named = {name: p.grad for name, p in task.student.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in named.values())
    means = {name: all_gather(gradient.unsqueeze(0)).mean(0).numpy() for name, gradient in named.items() if gradient is not None}
    return averages, means, task.queue.image.numpy()


def assert_same(found: Outcome, expected: Outcome) -> None:
    """To 1e-9, of a tensor's largest gradient where that exceeds 1."""
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    assert sorted(found[1]) == sorted(expected[1])
    for name, gradient in expected[1].items():
        largest = max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-9 * largest, rtol=0, err_msg=name)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-9)


VARIANTS = {
    "as in the paper": OBJECTIVES,
    "false negatives as in the official code": replace(OBJECTIVES, false_negatives="official"),
    "local negatives": replace(OBJECTIVES, negatives="local"),
    "without matching": replace(OBJECTIVES, itm=0.0),
    "contrast and pixels": replace(OBJECTIVES, itm=0.0, mlm=0.0, itc=0.5),
}


def steps(rank: int, ranks: int) -> list[Outcome]:
    """Every variant at once, in 2 micro-batches, and in as many as there are rows: 8 on one rank, 4 on two."""
    ways = product(VARIANTS, (1, 2, BATCH // ranks))
    return [step(rank, ranks, VARIANTS[name], accumulation) for name, accumulation in ways]


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_accumulated_step_is_the_step_at_once(ranks: int) -> None:
    for outcomes in on_ranks(ranks, steps):
        for at_once, *accumulated in zip(outcomes[::3], outcomes[1::3], outcomes[2::3], strict=True):
            for one in accumulated:
                assert_same(one, at_once)


DROPOUT = replace(TEXT, dropout=0.2, attention_dropout=0.2)


@contextmanager
def same_masks() -> Iterator[None]:
    """Dropout whose masks depend on the shape of a row and not on its place in the batch."""
    plain, seen = F.dropout, []

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        seen.append(x.shape)
        kept = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(sum(x.shape[1:])), dtype=x.dtype) >= p
        return x * kept / (1 - p)

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
        return (dropout(weights, p) if p else weights) @ value

    F.dropout = dropout
    ops.use(attention=attention)
    try:
        yield
    finally:
        F.dropout = plain
        ops.use()
    assert seen


def test_an_accumulated_step_with_the_same_dropout_is_the_step_at_once() -> None:
    with same_masks():
        at_once = step(0, 1, OBJECTIVES, 1, DROPOUT)
        assert at_once[0]["mlm"] != pytest.approx(step(0, 1, OBJECTIVES, 1)[0]["mlm"], abs=1e-3)
        assert_same(step(0, 1, OBJECTIVES, 2, DROPOUT), at_once)


def test_a_scaled_loss_has_scaled_gradients_inside_too() -> None:
    """float16's scale: gradients between the passes are as large as those that come out."""
    found, whole, scale = [], whole_batch(), torch.tensor(2.0**12, dtype=torch.float64)
    for scaled in (False, True):
        task, between = task_of(OBJECTIVES, TEXT), list[float]()
        task.student.vision_proj.register_full_backward_hook(lambda m, i, out, seen=between: seen.append(float(out[0].abs().max())))
        batches = [rows_of(whole, first, 4, 9) for first in (0, 4)]
        loss = task.compute_together(batches, Key(5, 3, 0), scale if scaled else None).loss
        (loss * scale).backward()
        found.append((loss.item(), between, torch.cat([p.grad.flatten() for p in task.student.parameters() if p.grad is not None])))
    (loss, plain, gradients), (same, between, scaled_gradients) = found
    assert same == loss and [one / float(scale) for one in between] == pytest.approx(plain)
    assert scaled_gradients.equal(gradients)  # a power of two


def test_gradients_are_those_of_the_losses_with_dropout_drawn() -> None:
    """Along a random direction, against the difference of two losses: both encodings of a micro-batch drop the same.

    But for the temperature, through which soft targets, taken without a gradient, change too.
    """
    task, whole = task_of(OBJECTIVES, DROPOUT), whole_batch()
    batches = [rows_of(whole, first, 4, 9) for first in (0, 4)]
    task.forward_together(batches, Key(5, 3, 0)).loss.backward()
    trained = [p for p in task.student.parameters() if p.requires_grad and p is not task.student.temp]
    generator = torch.Generator().manual_seed(7)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trained]
    expected = float(sum((p.grad * d).sum() for p, d in zip(trained, direction, strict=True) if p.grad is not None))
    found, small = [], 1e-6
    for sign in (1, -2):  # to + and then to - of the start
        with torch.no_grad():
            for parameter, towards in zip(trained, direction, strict=True):
                parameter.add_(towards, alpha=sign * small)
        found.append(float(task.forward_together(batches, Key(5, 3, 0)).loss.detach()))
    assert (found[0] - found[1]) / (2 * small) == pytest.approx(expected, rel=1e-6)
