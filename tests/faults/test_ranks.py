"""Ranks, loader processes and losses that fail while a run goes on."""

import signal
import socket
import sys
import time
from pathlib import Path

from m2i2.training.stopping import EXIT_STOPPED
from tests.faults.runs import LAUNCHER, SETTINGS, Watched, assert_gone, items, lines, steps_logged, torchrun
from tests.faults.test_hangs import two_ranks
from tests.launching import command, launch

FOREVER = ["training.epochs=100000", "training.save_every=1000000"]


def training(run: Watched) -> Watched:
    """The run, once it has taken steps."""
    assert run.wait_until(lambda: steps_logged(run.run) > 1), run.output[-3000:]
    return run


def first_error(run: Watched) -> str:
    """What the first rank that failed said."""
    return next(line for line in run.output.splitlines() if line.startswith(("error", "fault", "interrupted")))


def without_launcher(shards: Path, folder: Path, port: int, extra: dict[str, str]) -> list[Watched]:
    """Two ranks that nobody watches, as two nodes would start them."""
    place = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **extra}
    words = [sys.executable, LAUNCHER, "--shards", shards, *SETTINGS, *FOREVER, "--output", folder / "run"]
    return [Watched(words, folder / str(rank), place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


def test_dead_rank_under_the_deepspeed_launcher(shards: Path, tmp_path: Path) -> None:
    run = training(Watched([*command("pretrain", 2), "--shards", shards, *SETTINGS, *FOREVER], tmp_path))
    run.tree()
    rank = run.rank(1)
    assert rank is not None
    rank.kill()
    killed = time.monotonic()
    assert run.wait() in (1, 247), "the launcher passes on the code of the rank that it sees end first (247 is -9)"
    assert time.monotonic() - killed < 300
    assert first_error(run).startswith("error (rank 0): lost contact with another rank")
    assert_gone(run.seen)


def test_a_rank_that_fails_is_named_first(shards: Path, tmp_path: Path) -> None:
    run = training(Watched([*torchrun(2), "--shards", shards, *SETTINGS, *FOREVER], tmp_path))
    (worker,) = run.workers(1)
    worker.kill()
    assert run.wait() == 1
    assert first_error(run).startswith("error (rank 1): a loader process ended (DataLoader worker"), run.output[-3000:]
    assert "lower data.workers" in first_error(run)
    assert_gone(run.seen)


def test_an_exception_in_a_loader_process_is_its_ranks_fault(shards: Path, tmp_path: Path) -> None:
    zero, one = two_ranks("raise", shards, tmp_path, 600.0)
    assert one.wait_until(lambda: "a fault of the loader process" in one.output), one.output[-3000:]
    raised = time.monotonic()
    assert (zero.wait(300), one.wait(300)) == (1, 1)
    assert time.monotonic() - raised < 60
    assert "fault (rank 1):" in one.output and "Caught RuntimeError in DataLoader worker process 0." in one.output
    assert first_error(zero).startswith("error (rank 0): lost contact with another rank")
    assert [rank.wait() for rank in two_ranks("none", shards, tmp_path, 600.0)] == [0, 0], "the same command goes on"
    assert len(items(tmp_path / "run")) == 40
    assert_gone(zero.seen | one.seen)


def test_ranks_without_a_launcher_end_with_the_one_that_is_gone(shards: Path, tmp_path: Path) -> None:
    zero, one = without_launcher(shards, tmp_path, 29712, {})
    assert zero.wait_until(lambda: steps_logged(tmp_path / "run") > 1), zero.output[-3000:]
    zero.tree()
    pid = one.process.pid
    one.kill_all()
    killed = time.monotonic()
    assert zero.wait(300) == 1
    assert time.monotonic() - killed < 60
    assert f"Lost: rank 1 on {socket.gethostname()} (process {pid}) is gone" in zero.output, zero.output[-3000:]
    assert first_error(zero).startswith("error (rank 0): lost contact with another rank")
    assert_gone(zero.seen | one.seen)


def test_a_rank_that_hangs_is_given_up_in_time(shards: Path, tmp_path: Path) -> None:
    zero, one = without_launcher(shards, tmp_path, 29713, {"M2I2_TIMEOUT_MINUTES": "0.5"})
    assert zero.wait_until(lambda: steps_logged(tmp_path / "run") > 1), zero.output[-3000:]
    one.process.send_signal(signal.SIGSTOP)
    try:
        assert zero.wait(400) == 1
        assert first_error(zero).startswith("error (rank 0): lost contact with another rank")
    finally:
        one.kill_all()


def test_a_signal_while_loading_stops_the_run_after_its_first_step(shards: Path, tmp_path: Path) -> None:
    run = Watched([*command("pretrain", 1), "--shards", shards, *SETTINGS, *FOREVER], tmp_path)
    assert run.wait_until(lambda: bool(lines(run.run / "starts.jsonl")))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == EXIT_STOPPED, run.output[-3000:]
    assert "Signal 15: saved after step 1;" in run.output


def test_a_run_folder_serves_one_run_at_a_time(shards: Path, tmp_path: Path) -> None:
    words = [*command("pretrain", 1), "--shards", shards, *SETTINGS, *FOREVER, "--output", tmp_path / "run"]
    first = Watched(words, tmp_path)
    assert first.wait_until(lambda: steps_logged(tmp_path / "run") > 1), first.output[-3000:]
    second = Watched(words, tmp_path / "second")
    assert second.wait() == 2, second.output
    assert f"is in use by another run (process {first.process.pid} on" in second.output
    assert first.process.poll() is None
    first.kill_all()


def test_losses_that_are_not_finite(shards: Path, tmp_path: Path) -> None:
    words = ["--shards", shards, *SETTINGS, "optimizer.lr=1e30", "optimizer.warmup_lr=1e30", "training.max_nonfinite=2"]
    done = launch("pretrain", words, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "steps in a row up to step" in done.stderr and "not finite (last: the loss" in done.stderr
    assert "with a lower optimizer.lr" in done.stderr
    assert "Traceback" not in done.stderr
