"""A node that is slow, wrong or stuck before a run starts: two real ranks, the second of which is not as it should be."""

import re
import socket
import sys
import time
from pathlib import Path

from m2i2.excluded import EXCLUDED, excluded_hosts
from tests.conftest import ROOT
from tests.faults.runs import SETTINGS, Watched
from tests.launching import launch

HOST = socket.gethostname()


def examined(fault: str, folder: Path, **more: str) -> list[Watched]:
    """Two ranks without a launcher, at their ends."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    words = [sys.executable, str(ROOT / "tests" / "faults" / "examined.py"), fault, folder / "run"]
    return [Watched(words, folder / str(rank), place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


def test_a_wrong_rank_ends_the_start_and_its_host_is_excluded(shards: Path, tmp_path: Path) -> None:
    zero, one = examined("wrong", tmp_path)
    assert (zero.wait(), one.wait()) == (2, 2), zero.output + one.output
    error = next(line for line in zero.output.splitlines() if line.startswith("error (rank 0): Preflight: "))
    assert f"rank 1 on {HOST}: wrong: float32 products of whole numbers: 1 of 256 rows are wrong" in error
    assert "rank 0 on" not in error and f"{HOST} is now in" in error and "Traceback" not in zero.output
    assert excluded_hosts(tmp_path / "run") == [HOST]
    done = launch("pretrain", ["--shards", shards, *SETTINGS, "--preflight"], tmp_path)
    assert done.returncode == 2 and f"{HOST} takes part in this start, but run/{EXCLUDED} excludes it" in done.stderr, done.stderr


def test_a_slow_rank_with_a_wrong_clock_is_a_warning(tmp_path: Path) -> None:
    zero, one = examined("slow", tmp_path)
    assert (zero.wait(), one.wait()) == (0, 0), zero.output + one.output
    (seconds,) = re.findall(r"Preflight of 2 rank\(s\) on 1 node\(s\) in ([\d.]+) s: matrix products ", zero.output)
    assert float(seconds) < 60
    assert f"Preflight: warning: rank 1 on {HOST}: matrix products at " in zero.output, zero.output
    assert f"Preflight: warning: rank 1 on {HOST}: its clock is 3600" in zero.output
    assert not (tmp_path / "run").exists()


def test_a_rank_that_does_not_come_back_is_named_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    zero, one = examined("stuck", tmp_path, M2I2_PREFLIGHT_SECONDS="4")
    assert zero.wait(300) == 2, zero.output
    assert time.monotonic() - began < 200
    assert f"error (rank 0): Preflight: rank 1 on {HOST} did not come back from its measures in 4 s" in zero.output
    assert excluded_hosts(tmp_path / "run") == [HOST]
    one.kill_all()
