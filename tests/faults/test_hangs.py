"""Ranks that hang without dying are named, with host and stack, and ended in time; slow ones are named."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from m2i2.training.goodput import LEDGER
from tests.conftest import ROOT
from tests.faults.runs import Watched, assert_gone, lines, steps_logged

BOUND = 6.0


def two_ranks(fault: str, shards: Path, folder: Path, bound: float = BOUND, *more: object) -> list[Watched]:
    """Two ranks without a launcher, as two nodes would start them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, str(ROOT / "tests" / "faults" / "faulty.py"), fault, shards, folder / "run", bound, *more]
    return [Watched(words, folder / str(rank), place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("stop", "the process is stopped by a signal"),
        ("lock", "It stands at "),
        ("deadlock", " in barrier"),
        ("worker", "Its loader process "),
    ],
)
def test_a_rank_that_hangs_is_named_and_ended(shards: Path, tmp_path: Path, fault: str, where: str) -> None:
    if fault == "worker":
        os.mkfifo(tmp_path / "pipe")
    zero, one = two_ranks(fault, shards, tmp_path)
    run = tmp_path / "run"
    if fault == "stop":
        assert zero.wait_until(lambda: steps_logged(run) >= 5), zero.output[-3000:]
        one.process.send_signal(signal.SIGSTOP)
    assert zero.wait_until(lambda: "Warning: rank " in zero.output), zero.output[-3000:]
    warned = time.monotonic()
    codes = zero.wait(300), one.wait(300)
    assert time.monotonic() - warned < 20 * BOUND
    hang = next(line for line in zero.output.splitlines() if line.startswith("Hang: "))
    named = 0 if fault == "deadlock" and hang.startswith("Hang: rank 0") else 1  # of two that wait, none is more at fault
    assert codes[named] == -signal.SIGKILL and codes[1 - named] != 0, zero.output[-3000:] + one.output[-3000:]
    process = (zero, one)[named].process.pid
    assert hang.startswith(f"Hang: rank {named} on {socket.gethostname()} (process {process}) has been ") and where in hang
    if fault == "worker":
        worker, _, stands = hang.partition("Its loader process ")[2].partition(" ")
        assert "has been waiting for data" in hang and "in read_bytes" in stands
        with contextlib.suppress(psutil.NoSuchProcess):
            assert_gone({psutil.Process(int(worker))})
    kinds = [row["kind"] for row in lines(run / "hangs.jsonl")]
    assert kinds[0] == "slow" and kinds[-1] == "hang"
    assert "trainer.py" in json.dumps(lines(run / "hangs.jsonl")[-1]["ranks"][0]["stack"]), "rank 0 stands in its step"
    assert_gone(zero.seen | one.seen)


def test_a_job_that_is_suspended_and_continued_raises_no_alarm(shards: Path, tmp_path: Path) -> None:
    """As `scontrol suspend` does it: every process is stopped, for longer than a rank may hang."""
    ranks = two_ranks("none", shards, tmp_path, BOUND, 40)
    run = tmp_path / "run"
    assert ranks[0].wait_until(lambda: steps_logged(run) >= 5), ranks[0].output[-3000:]
    processes = [process for rank in ranks for process in rank.tree()]
    for process in processes:
        process.suspend()
    time.sleep(BOUND + 4)
    for process in processes:
        process.resume()
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output[-3000:]
    assert not (run / "hangs.jsonl").exists(), ranks[0].output[-3000:]


def test_a_slow_rank_is_named_and_neither_it_nor_a_clock_that_jumps_raises_an_alarm(shards: Path, tmp_path: Path) -> None:
    zero, one = two_ranks("slow", shards, tmp_path, 600.0)
    assert (zero.wait(), one.wait()) == (0, 0), zero.output[-3000:]
    rows = lines(tmp_path / "run" / "log.jsonl")
    assert {row["slowest_rank"] for row in rows[1:]} == {1}
    assert min(row["slowest_by"] for row in rows[1:]) > 1.5
    assert not (tmp_path / "run" / "hangs.jsonl").exists()
    assert "slowest rank" in zero.output
    spent = lines(tmp_path / "run" / LEDGER)
    times = [row["time"] for row in spent]
    assert max(times) - times[0] > 80_000 and abs(times[-1] - times[0]) < 3600, "the clock jumped, and back"
    assert 0 < spent[-1]["wall"] < 3600 and all(0 < row["goodput"] <= 1 for row in rows)
