"""A run that is killed again and again, anywhere, is in the end the run that nothing disturbed."""

import random
import time
from collections import Counter
from pathlib import Path

from tests.faults.conftest import STEPS
from tests.faults.runs import (
    SETTINGS,
    Watched,
    assert_each_once_an_epoch,
    assert_gone,
    items,
    lines,
    losses,
    shared_memory,
    steps_logged,
    tensors,
    torchrun,
)
from tests.preloaded import LONG

MOMENTS = ("starting", "loading", "stepping", "saving")
VICTIMS = ("all", "rank 0", "rank 1")
KILLS = 21 if LONG else 12
"""Each moment with each victim once; with M2I2_LONG=1 then some of them again."""


def reach(moment: str, run: Watched, chance: random.Random) -> bool:
    """Wait for the moment; whether it came before the run's end."""
    starts, done = len(lines(run.run / "starts.jsonl")), steps_logged(run.run)
    if moment == "starting":  # imports, joining, reading checkpoint and shards
        delay = time.monotonic() + chance.uniform(0.5, 5)
        return run.wait_until(lambda: time.monotonic() > delay and run.rank(1) is not None)
    if moment == "loading":  # from the claim of the folder on: engine, weights, optimizer, loader processes
        there = run.wait_until(lambda: len(lines(run.run / "starts.jsonl")) > starts)
        time.sleep(chance.uniform(0, 1))
        return there
    if moment == "stepping":
        there = run.wait_until(lambda: "steps to go" in run.output and steps_logged(run.run) not in (0, done))
        time.sleep(chance.uniform(0, 0.2))
        return there
    seen = {path.name for path in (run.run / "checkpoints").glob(".writing-*")}
    there = run.wait_until(lambda: any(p.name not in seen for p in (run.run / "checkpoints").glob(".writing-*")))
    time.sleep(chance.uniform(0, 0.02))
    return there


def kill(victim: str, run: Watched) -> None:
    """SIGKILL to one rank, after which the others must end by themselves, or to everything at once."""
    rank = None if victim == "all" else run.rank(int(victim.removeprefix("rank ")))
    if rank is None:
        run.kill_all()
        return
    rank.kill()
    assert run.wait(300) != 0, "a run that lost a rank says so"


def test_kills_leave_the_run_that_nothing_disturbed(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(2023)
    every = [(moment, victim) for moment in MOMENTS for victim in VICTIMS]
    plan = every + chance.sample(every, KILLS - len(every))
    chance.shuffle(plan)
    command = [*torchrun(2), "--shards", shards, *SETTINGS]
    seen, kills = set(), 0
    for moment, victim in plan:
        run = Watched(command, tmp_path, afresh=moment == "starting")  # imports are a part of starting
        assert reach(moment, run, chance), f"ended before it was killed ({moment}):\n{run.output[-3000:]}"
        kill(victim, run)
        seen |= run.seen
        kills += 1
    run = Watched(command, tmp_path)
    assert run.wait() == 0, run.output[-3000:]
    assert kills == KILLS

    assert tensors(run.run, STEPS) == tensors(undisturbed, STEPS)
    assert losses(run.run) == losses(undisturbed)
    consumed = items(run.run)
    assert Counter(i for step in consumed for i in step) == Counter(i for step in items(undisturbed) for i in step)
    assert consumed == items(undisturbed) and len(consumed) == STEPS
    assert_each_once_an_epoch(consumed)
    assert not list((run.run / "checkpoints").glob(".writing-*")), "what killed saves have left is removed"
    assert_gone(seen | run.seen)
    assert not shared_memory(run.seen), "a run that nothing killed leaves none"
    left = set(shared_memory(seen))
    for path in left:
        path.unlink()
    of = Counter(path.name.split("_")[1] for path in left)
    assert set(of.values()) <= {1}, f"a process killed between torch's shm_open and shm_unlink leaves that one file: {left}"
