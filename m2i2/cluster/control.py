"""What SLURM says about a job: from its controller while it remembers, then from the accounting where there is one."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from m2i2.errors import M2I2Error, shown

ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
    "LAUNCH_FAILED",
)
"""States that a job does not leave by itself (NODE_FAIL and PREEMPTED become PENDING where the job is requeued)."""


_JOB_ID = re.compile(r"[0-9]{1,18}(_[0-9]{1,9})?")


def require_job_id(job_id: object) -> str:
    """A job's number, or that of a member of an array; M2I2Error for anything else, which no SLURM command is given."""
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise M2I2Error(f"{shown(job_id)} is not a job number of SLURM, such as 12 or 12_0.")
    return job_id


class Unreachable(Exception):
    """The controller did not answer."""


@dataclass(frozen=True)
class JobState:
    """A job at one moment."""

    name: str
    """SLURM's word, such as PENDING."""
    reason: str = ""
    """Why it waits or ended, where SLURM says so."""
    exit_code: int = 0
    signal: int = 0
    """That ended it, or 0."""
    restarts: int = 0
    time_limit: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.name in ENDED


def _ask(*words: str) -> tuple[int, str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise M2I2Error(f"There is no {words[0]} on this machine; run this where SLURM's commands are, on a login node.") from None
    except subprocess.TimeoutExpired as e:
        raise Unreachable(f"{' '.join(words)} did not answer in 120 s") from e
    return done.returncode, (done.stdout + done.stderr).strip()


def job_state(job_id: str) -> JobState | None:
    """The job's state; None where neither the controller nor the accounting knows it.

    Raises Unreachable where the controller does not answer.
    """
    code, text = _ask("scontrol", "show", "job", "-o", require_job_id(job_id))
    if code == 0 and "JobState=" in text:
        return _from_controller(text.splitlines()[0])
    if "Invalid job id" not in text:
        raise Unreachable(text)
    code, text = _ask("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,Timelimit")
    rows = [row.split("|") for row in text.splitlines() if row.count("|") == 2]
    if code or not rows:
        return None
    name, exit_code, limit = rows[-1]
    status, by = map(int, exit_code.split(":"))
    return JobState(name.split()[0], "", status, by, 0, limit)


def accounting() -> bool:
    """Whether the cluster keeps accounts of ended jobs (`sacct` answers)."""
    return _ask("sacct", "-X", "-n", "-P", "-j", "1", "-o", "State")[0] == 0


def shown_state(job_id: str) -> str:
    """The state of a job as its controller has it; RUNNING where it cannot be asked."""
    try:
        state = job_state(job_id)
    except Unreachable:
        return "RUNNING"
    return state.name if state else "UNKNOWN"


def _from_controller(line: str) -> JobState:
    fields = dict(re.findall(r"(?:^| )(JobState|Reason|ExitCode|Restarts|TimeLimit)=(\S*)", line))
    status, _, by = fields.get("ExitCode", "0:0").partition(":")
    reason = fields.get("Reason", "")
    return JobState(
        fields["JobState"],
        "" if reason == "None" else reason,
        int(status),
        int(by or 0),
        int(fields.get("Restarts", 0)),
        fields.get("TimeLimit", ""),
    )


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs."""
    code, text = _ask("scancel", *map(require_job_id, jobs))
    if code:
        raise M2I2Error(f"scancel {' '.join(jobs)} failed: {text}")
