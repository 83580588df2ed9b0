"""A run handed from 2 ranks to 4, to 1 and back to 2 is the run on 2 ranks."""

from pathlib import Path

import numpy as np

from tests.faults.runs import SETTINGS, Watched, assert_each_once_an_epoch, items, losses, torchrun


def test_two_four_one_two_ranks(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    for ranks, steps in ((2, 4), (4, 9), (1, 13), (2, 20)):
        run = Watched([*torchrun(ranks), "--shards", shards, *SETTINGS, f"training.max_steps={steps}"], tmp_path)
        assert run.wait(600) == 0, run.output[-3000:]
        assert f"= {ranks} rank(s) x {16 // ranks} x 1" in run.output
    assert_each_once_an_epoch(items(run.run))
    assert items(run.run) == items(undisturbed)[:20]
    np.testing.assert_allclose(losses(run.run), losses(undisturbed)[:20], atol=1e-5, rtol=0)
