"""Who is at fault where ranks computed the same micro-batches with other results."""

import pytest
import torch
from torch import Tensor

from m2i2.training.replays.verdict import judge


def tables(ranks: int, wrong: set[int], passing: bool = False) -> tuple[Tensor, Tensor]:
    """What ranks report, those of ``wrong`` with an error of their own; ``passing``: the first time only."""
    right = torch.arange(ranks * 6).view(ranks, 3, 2)

    def computed(rank: int, batch: int, again: bool) -> Tensor:
        error = rank + 1 if rank in wrong and not (passing and again) else 0
        return right[batch % ranks] + error

    first = [torch.stack([computed(rank, rank - back, False) for back in range(2)]) for rank in range(ranks)]
    again = [torch.stack([computed(rank, rank - back, True) for back in range(min(3, max(ranks, 2)))]) for rank in range(ranks)]
    return torch.stack(first), torch.stack(again)


@pytest.mark.parametrize("ranks", [3, 4, 8])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_third_rank_tells_which_one(ranks: int, rank: int) -> None:
    assert judge(*tables(ranks, {rank}), [False] * ranks) == ([rank], True)


def test_two_ranks_need_a_known_product() -> None:
    assert judge(*tables(2, {1}), [False, False]) == ([0, 1], False)
    assert judge(*tables(2, {1}), [False, True]) == ([1], True)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_result_that_changes_is_a_fault_on_one_rank_and_a_kernel_on_several(ranks: int) -> None:
    assert judge(*tables(ranks, {1}, passing=True), [False] * ranks) == ([1], True)
    assert judge(*tables(ranks, set(range(ranks)), passing=True), [False] * ranks).ranks == []


def test_alone_two_of_three_results_must_agree() -> None:
    one = torch.ones(1, 2, 3, 2, dtype=torch.int64)
    other = one.clone()
    other[0, 1] += 1
    assert judge(other, one, [False]) == ([0], True)
    assert judge(other, one + 2, [False]).ranks == []
    assert judge(one, one, [True]) == ([0], True)
