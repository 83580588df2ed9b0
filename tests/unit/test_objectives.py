"""Draws, queue, teacher and masking do what their names say, at the edges too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from m2i2.data.loading.masking import mask_tokens, places_of
from m2i2.objectives.itc import itc_loss
from m2i2.objectives.itm import itm_loss, rows_present
from m2i2.objectives.mlm import mlm_loss
from m2i2.tasks.negatives import GlobalBatch, draw_negatives
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.teacher import following


def gumbel(*shape: int, seed: int = 0) -> torch.Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).clamp(1e-20, 1 - 1e-7)
    return -(-uniform.log()).log()


def test_negatives_are_drawn_with_the_softmax_of_the_similarity() -> None:
    rows = 60_000
    similarity = torch.tensor([[0.0, 1.0, 2.0, -1.0, 3.0]]).expand(rows, -1)
    forbidden = torch.tensor([[True, False, False, False, False]]).expand(rows, -1)
    drawn, there = draw_negatives(similarity, forbidden, gumbel(rows, 5))
    expected = torch.softmax(similarity[0, 1:], 0)
    found = torch.bincount(drawn, minlength=5) / rows
    assert found[0] == 0
    assert there.all()
    torch.testing.assert_close(found[1:], expected, atol=0.01, rtol=0)


def everyone(captions: torch.Tensor, queued: torch.Tensor) -> GlobalBatch:
    """A batch of pairs, and a queue, with these text features; no two share an image or a caption."""
    queue = FeatureQueue(len(queued), captions.shape[1])
    queue.push(queued, queued, torch.arange(len(queued)) + 100, torch.arange(len(queued)) + 100)
    ids = torch.arange(len(captions))
    return GlobalBatch.of((torch.zeros_like(captions), captions, ids, ids), queue, local=False)


def test_captions_that_are_nearly_the_same_are_no_negatives_where_asked_for() -> None:
    directions = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    batch = everyone(directions, nn.functional.normalize(torch.tensor([[1.0, -0.05], [-1.0, 0.0]]), dim=1))
    assert not batch.excluded().any()
    expected = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(batch.excluded(0.98), expected), "in the batch and in the queue, but for the own pair"


def test_hardness_scales_the_similarity_that_negatives_are_drawn_with() -> None:
    batch = everyone(torch.eye(4), torch.eye(4)[:0])
    similarity = torch.tensor([[0.0, 50.0, 0.0, 0.0]]).expand(4, -1)

    def drawn(hardness: float) -> set[int]:
        starts = [torch.tensor([1000 * number, 7 + 1000 * number]) for number in range(40)]
        return {int(batch.draw(similarity, similarity, None, start, hardness).text[0]) for start in starts}

    assert drawn(1.0) == {1} and drawn(0.0) == {1, 2, 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_no_similarity_can_make_a_draw_fail(value: float) -> None:
    drawn, there = draw_negatives(torch.full((4, 4), value), torch.eye(4, dtype=torch.bool), gumbel(4, 4))
    assert there.all()
    assert all(int(drawn[i]) != i for i in range(4))


def test_a_batch_of_one_has_no_negatives_and_still_a_loss() -> None:
    drawn, there = draw_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), gumbel(1, 1))
    assert not there.any()
    assert int(drawn[0]) == 0
    logits = torch.tensor([[0.0, 2.0], [5.0, 5.0], [5.0, 5.0]])
    loss = itm_loss(logits, there, there, rows_present(there, there).sum())
    assert float(loss) == pytest.approx(float(np.log1p(np.exp(-2))), abs=1e-6)


@settings(deadline=None)
@given(size=st.integers(0, 9), pushes=st.lists(st.integers(1, 25), max_size=8))
def test_the_queue_keeps_the_newest_rows_in_a_ring(size: int, pushes: list[int]) -> None:
    queue, plain, place, number = FeatureQueue(size, 2), [-1] * size, 0, 0
    for count in pushes:
        ids = torch.arange(number, number + count)
        rows = torch.stack([ids, -ids], dim=1).float()
        queue.push(rows, 2 * rows, ids, ids + 1000)
        for i in range(count):
            if size:
                plain[place] = number + i
                place = (place + 1) % size
        number += count
    assert queue.image_ids.tolist() == plain
    for row, identity in enumerate(plain):
        if identity >= 0:
            assert queue.image[row].tolist() == [identity, -identity]
            assert queue.text[row].tolist() == [2 * identity, -2 * identity]
            assert int(queue.text_ids[row]) == identity + 1000
    assert int(queue.pointer) == place


def test_a_teacher_absorbs_a_drift_that_half_precision_would_lose() -> None:
    teacher, student = nn.Linear(4, 4), nn.Linear(4, 4)
    teacher.load_state_dict(student.state_dict())
    start = student.weight.detach().clone()
    with torch.no_grad():
        student.weight += 1e-3
    for _ in range(1000):
        following(teacher, student).move(0.995)
    torch.testing.assert_close(teacher.weight - start, torch.full((4, 4), 1e-3), atol=1e-5, rtol=0)


def test_masking_follows_its_ratios_and_spares_the_first_token() -> None:
    class Vocabulary:
        size, cls_id, pad_id, mask_id = 1000, 2, 0, 4

    ids = [2, *range(10, 30), 3]
    rng = np.random.default_rng(0)
    masked, labels = (np.array(rows) for rows in zip(*(mask_tokens(ids, rng, 0.15, Vocabulary) for _ in range(4000)), strict=True))
    asked = labels != -100
    assert not asked[:, 0].any()
    assert asked[:, 1:].mean() == pytest.approx(0.15, abs=0.005)
    original = np.array(ids)[None].repeat(4000, 0)
    assert (labels[asked] == original[asked]).all()
    assert (masked[~asked] == original[~asked]).all()
    assert (masked[asked] == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (masked[asked] == original[asked]).mean() == pytest.approx(0.1, abs=0.01)


def test_a_batch_without_a_masked_word_costs_nothing() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = mlm_loss(logits, torch.zeros(0, dtype=torch.long), torch.zeros(0, 7), torch.zeros(()), 0.4)
    loss.backward()
    assert float(loss) == 0


def test_excluded_pairs_do_not_count_in_the_contrast() -> None:
    torch.manual_seed(0)
    features = [nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (3, 3, 5, 5)]
    own, temperature = torch.arange(3), torch.tensor([0.1])
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[:, 4] = True
    fewer = itc_loss(*features[:2], [features[2][:4]], [features[3][:4]], own, temperature, 0.4, None)
    same = itc_loss(*features[:2], [features[2]], [features[3]], own, temperature, 0.4, excluded)
    assert float(same.loss) == pytest.approx(float(fewer.loss), abs=1e-6)
    assert torch.isfinite(same.loss)


@pytest.mark.parametrize("asked", [0, 1, 7, 8, 30, 49, 50])
def test_every_masked_word_has_a_place_and_the_rest_asks_for_nothing(asked: int) -> None:
    labels = np.full((5, 10), -100)
    labels.flat[np.random.default_rng(asked).permutation(50)[:asked]] = 7
    places = places_of(labels, 0.15)
    assert sorted(set(places[labels.flat[places] != -100])) == np.flatnonzero(labels != -100).tolist()
    assert (labels.flat[places] != -100).sum() == asked
    assert len(places) in (16, 32, 50), "a few capacities"
