"""A rank whose products are wrong from some step on is found in time, named, and undone."""

from pathlib import Path

import pytest

from m2i2.training.replays.replays import EXCLUDED
from tests.faults.runs import items, lines, tensors
from tests.faults.test_hangs import two_ranks


def test_a_rank_whose_products_are_wrong_is_named_and_undone(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "node7"}.items():
        monkeypatch.setenv(variable, value)
    for folder in ("plain", "wrong"):
        (tmp_path / folder).mkdir()
    assert [rank.wait() for rank in two_ranks("none", shards, tmp_path / "plain", 600.0, 30)] == [0, 0]
    zero, one = two_ranks("products", shards, tmp_path / "wrong", 600.0, 30, 14)
    assert (zero.wait(), one.wait()) == (2, 2), zero.output[-3000:] + one.output[-3000:]
    run = tmp_path / "wrong" / "run"
    for text in (zero.output, one.output):
        assert "Rank 1 on node7 (cpu) computes wrongly: after step 20, " in text and ", the gradient of " in text
    assert [row["step"] for row in lines(run / "replays.jsonl")] == [20], "within 10 steps of the fault"
    assert (run / EXCLUDED).read_text() == "node7\n"
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert names == ["step-00000009", "step-00000012.suspect", "step-00000015.suspect", "step-00000018.suspect"]
    assert [rank.wait() for rank in two_ranks("none", shards, tmp_path / "wrong", 600.0, 30)] == [0, 0]
    plain = tmp_path / "plain" / "run"
    assert tensors(run, 30) == tensors(plain, 30) and items(run) == items(plain)
