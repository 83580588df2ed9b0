"""Twenty steps of pretraining and of finetuning give the numbers of version 0.1, to 1e-9, on every number of ranks."""

import pytest

from tests.distributed.processes import on_ranks
from tests.golden.cases import CASES
from tests.golden.run import Record, differences, run_several, run_together
from tests.golden.stored import stored

EXACT = 1e-9
ON_RANKS = {1: list(CASES), 2: list(CASES), 4: ["pretraining"]}


def assert_golden(found: Record, name: str) -> None:
    worst = differences(found, stored()[name])
    assert worst[0][0] < EXACT, "\n".join(f"{difference:.1e} {where}" for difference, where in worst[:8])


@pytest.mark.parametrize("ranks", ON_RANKS)
def test_the_numbers_of_version_0_1(ranks: int) -> None:
    for outcome in on_ranks(ranks, run_several, ON_RANKS[ranks]):
        for name, found in outcome.items():
            assert_golden(found, name)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_accumulated_run_with_losses_over_the_whole_batch_has_the_same_numbers(ranks: int) -> None:
    for found in on_ranks(ranks, run_together):
        assert_golden(found, "pretraining")


def test_the_record_is_of_runs_that_learn() -> None:
    for name, record in stored().items():
        losses = [row["loss"] for row in record["losses"]]
        assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5]), name
        names = {"loss", "mim", "mlm", "itm", "itc"} if CASES[name].kind == "pretraining" else {"loss"}
        assert all(set(row) == names for row in record["losses"]), name
