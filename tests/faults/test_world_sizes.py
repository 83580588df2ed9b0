"""A run handed from 2 ranks to 4, to 2 of 3, to 1 and back to 2 is the run on 2 ranks."""

from pathlib import Path

import numpy as np

from tests.faults.runs import assert_each_once_an_epoch, items, losses, run_to_its_end, torchrun


def test_two_four_one_two_ranks(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    for ranks, steps in ((2, 4), (4, 9), (3, 11), (1, 13), (2, 20)):
        more = ["--allow-fewer-ranks"] if ranks == 3 else []
        out = run_to_its_end(torchrun(ranks), shards, tmp_path, f"training.max_steps={steps}", *more)
        assert ("= 2 rank(s) x 4 x 2" if ranks == 3 else f"= {ranks} rank(s) x {16 // ranks} x 1") in out
    run = tmp_path / "run"
    assert_each_once_an_epoch(items(run))
    assert items(run) == items(undisturbed)[:20]
    np.testing.assert_allclose(losses(run), losses(undisturbed)[:20], atol=1e-5, rtol=0)
