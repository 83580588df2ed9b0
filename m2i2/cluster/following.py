"""Following jobs from the outside: rank 0's log as it grows, and how the job ended, in SLURM's words and the ranks' own."""

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from m2i2.cluster.control import JobState, Unreachable, accounting, job_state
from m2i2.cluster.jobs import LostRank
from m2i2.cluster.start import outcome
from m2i2.cluster.submission import Submitted
from m2i2.errors import M2I2Error
from m2i2.exits import EXIT_FAULT, EXIT_USER_ERROR
from m2i2.files import read_tail
from m2i2.ownership import open_plain
from m2i2.terminal import say

EXIT_CODES = {"COMPLETED": 0, "TIMEOUT": 124, "CANCELLED": 130, "OUT_OF_MEMORY": 137}
"""Of --follow, by the job's last state. FAILED: 2 or 1 by a rank's error, the job's own without one; others: 1."""

NEVER = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "DependencyNeverSatisfied")
"""Reasons for waiting that do not pass by themselves."""

_PASSING = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
"""States through which a job may go on its way back to the queue, and how long that takes at most (seconds)."""
_PASSES_WITHIN = 30.0

_PATIENCE = 600.0
"""Seconds that an unreachable controller is waited for."""
_OUT_OF_MEMORY = "was killed because it used more memory than it had asked for: ask for more --memory."
_MOST_NEWS = 8 << 20
"""Bytes of a log that are shown at a time; of more, the last."""
_MEMORY = re.compile(r"slurmstepd.*(exceeded (step|job)?\s?memory limit|oom.kill)", re.IGNORECASE)
"""What SLURM writes into the log where it ends a job for its memory but calls it FAILED."""


@dataclass
class _Log:
    """A file that grows, and may not be there yet."""

    path: Path
    position: int = 0

    def news(self) -> str:
        """What was added since the last call."""
        try:
            with open(open_plain(self.path, os.O_RDONLY), "rb") as f:
                size = os.fstat(f.fileno()).st_size
                if skipped := max(0, size - self.position - _MOST_NEWS):
                    self.position += skipped
                f.seek(self.position)
                data = f.read(_MOST_NEWS)
        except FileNotFoundError:
            return ""
        except OSError as e:
            raise M2I2Error(f"The log {self.path} cannot be read: {e.strerror}. Follow the job with squeue instead.") from e
        self.position += len(data)
        return (f"({skipped} bytes left out)\n" if skipped else "") + data.decode(errors="replace")


@dataclass
class _Watch:
    """The state of one member, asked for again and again."""

    submitted: Submitted
    member: int
    state: JobState = field(default_factory=lambda: JobState("SUBMITTED"))
    _silent_since: float = 0.0
    _state_since: float = 0.0

    @property
    def job_id(self) -> str:
        return self.submitted.job_ids[self.member]

    def look(self) -> str:
        """Ask SLURM; returns a line where something changed."""
        try:
            found = job_state(self.job_id)
        except Unreachable as e:
            return self._no_answer(str(e))
        self._silent_since = 0.0
        before, self.state = self.state, found or _forgotten(self.submitted, self.member)
        if (before.name, before.reason, before.restarts) == (self.state.name, self.state.reason, self.state.restarts):
            return ""
        self._state_since = time.monotonic()
        return self._describe()

    def _no_answer(self, why: str) -> str:
        now = time.monotonic()
        if not self._silent_since:
            self._silent_since = now
            return f"SLURM's controller does not answer ({why}); asking again for {_PATIENCE / 60:.0f} minutes."
        if now - self._silent_since > _PATIENCE:
            self.state = JobState("UNREACHABLE", why)
        return ""

    def _describe(self) -> str:
        state = self.state
        why = f" ({state.reason})" if state.reason and not state.ended else ""
        again = f", start {state.restarts + 1}" if state.restarts else ""
        hint = ""
        if state.name == "PENDING" and state.reason in NEVER:
            hint = f": this does not pass by itself; scancel {self.job_id}, and submit again with another request"
        elif state.name == "PENDING" and "held" in state.reason.lower():
            hint = f": scontrol release {self.job_id} lets it go on"
        return f"job {self.job_id}: {state.name}{why}{again}{hint}"

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        if self.state.name in _PASSING:
            return time.monotonic() - self._state_since > _PASSES_WITHIN
        return self.state.ended or self.state.name in ("GONE", "UNREACHABLE")


def follow(submitted: Submitted) -> int:
    """Print what happens to the jobs until all are over, and why each ended; returns the exit code of the first that failed.

    Of a single job, rank 0's log too. Ctrl-C ends the following, not the jobs.
    """
    watches = [_Watch(submitted, member) for member in range(len(submitted.job_ids))]
    log = _Log(submitted.log()) if len(watches) == 1 else None
    try:
        for line in _until_over(watches, log):
            say(line, flush=True)
    except KeyboardInterrupt:
        say(f"\nNo longer following; job {submitted.job_id} goes on. scancel {submitted.job_id} ends it.", file=sys.stderr)
        return 130
    codes = []
    for watch in watches:
        text, code = verdict(watch)
        say(text, file=sys.stderr if code else sys.stdout, flush=True)
        codes.append(code)
    return next((code for code in codes if code), 0)


def _until_over(watches: list[_Watch], log: _Log | None) -> Iterator[str]:
    started = asked = time.monotonic()
    asked -= 60
    while True:
        # the controller of a busy cluster is not to be asked every second for days, nor for each of many jobs
        pause = min(10.0, 1 + (time.monotonic() - started) / 60) * max(1.0, len(watches) / 8)
        if time.monotonic() - asked >= pause:
            for watch in watches:
                if not watch.over and (line := watch.look()):
                    yield f"-- {line}"
            asked = time.monotonic()
        over = all(watch.over for watch in watches)
        if over:
            time.sleep(0.5)  # what the ranks wrote last
        if log and (news := log.news()):
            yield news.rstrip("\n")
        if over:
            return
        time.sleep(0.25)


def _forgotten(submitted: Submitted, member: int) -> JobState:
    """The end of a job that SLURM does not know (any more), from what its ranks left behind."""
    outcomes = [outcome(submitted.result(member, rank)) for rank in range(submitted.ranks)]
    if all(found.kind == "success" for found in outcomes):
        return JobState("COMPLETED", "by its ranks' results")
    if any(found.error for found in outcomes):
        return JobState("FAILED", "by its ranks' results", EXIT_FAULT)
    return JobState("GONE")


def verdict(watch: _Watch) -> tuple[str, int]:
    """How a job ended: a paragraph, and the exit code that stands for it."""
    state, job, submitted = watch.state, watch.job_id, watch.submitted
    what = f"Job {job} ({submitted.tasks[watch.member].name})"
    resume = f"sh {submitted.folder / ('resume.sh' if len(submitted.job_ids) == 1 else f'resume-{watch.member}.sh')}"
    logs = f"Logs: {submitted.log(watch.member).with_name(f'{job}_*_log.out')}."
    if state.name == "COMPLETED":
        return f"{what} is done.", 0
    if state.name == "FAILED":
        return _failure(watch, what, f"{logs} Resume by hand: {resume}")
    code = EXIT_CODES.get(state.name, EXIT_FAULT)
    end = {
        "CANCELLED": "was cancelled (scancel, or a job that it depended on failed).",
        "TIMEOUT": f"was ended at its time limit ({state.time_limit}) before it could save and requeue itself: ask for more "
        f"--time, or for more --signal-delay if a step and a save take that long.",
        "OUT_OF_MEMORY": _OUT_OF_MEMORY,
        "NODE_FAIL": "lost a node and was not requeued.",
        "PREEMPTED": "was preempted and not requeued.",
        "UNREACHABLE": f"may still run: SLURM's controller has not answered ({state.reason}).",
        "GONE": "is unknown to SLURM"
        + ("" if accounting() else ", which keeps no accounts of ended jobs here (sacct does not answer),")
        + " and has left no result: it vanished.",
    }.get(state.name, f"ended as {state.name}.")
    return f"{what} {end} {logs} Resume by hand: {resume}", code


def _failure(watch: _Watch, what: str, remedy: str) -> tuple[str, int]:
    """A FAILED job: the error of the first rank that has one of its own, else what can be said."""
    submitted, state = watch.submitted, watch.state
    ends = {rank: outcome(submitted.result(watch.member, rank)) for rank in range(submitted.ranks)}
    own = {rank: end for rank, end in ends.items() if end.error and end.kind != LostRank.__name__}
    if not own and ran_out_of_memory(submitted, watch.member):
        return f"{what} {_OUT_OF_MEMORY} {remedy}", EXIT_CODES["OUT_OF_MEMORY"]
    if not own:
        silent = [rank for rank, end in ends.items() if not end.error]
        by = f" by signal {state.signal}" if state.signal else ""
        tails = "".join(f"\n-- the end of rank {r}'s log:\n{_tail(submitted.log(watch.member, r))}" for r in silent[:4])
        ranks = f"rank(s) {', '.join(map(str, silent))}" if silent else "a rank"
        return (
            f"{what} failed{by}, exit code {state.exit_code}: {ranks} ended without an error message.{tails}\n{remedy}",
            state.exit_code or 1,
        )
    rank, end = next(iter(own.items()))
    if end.kind == M2I2Error.__name__:
        return f"error (rank {rank}): {end.message.strip()}\n{what} failed. {remedy}", EXIT_USER_ERROR
    return f"{what} failed on rank {rank}:\n{end.traceback.strip()}\n{remedy}", EXIT_FAULT


def ran_out_of_memory(submitted: Submitted, member: int) -> bool:
    """Whether SLURM says at the end of rank 0's log that it ended the job for its memory."""
    return bool(_MEMORY.search(_tail(submitted.log(member))))


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(read_tail(path, 1 << 16).splitlines()[-lines:])
    except OSError:
        return f"(there is no {path})"


def states(submitted: Submitted) -> list[JobState]:
    """The present state of every job of a folder."""
    found = []
    for member in range(len(submitted.job_ids)):
        watch = _Watch(submitted, member)
        watch.look()
        found.append(replace(watch.state))
    return found
