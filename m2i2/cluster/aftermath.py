"""After the ranks of a job have ended badly, in its batch script: whether it goes back to the queue, and without which nodes.

A rank that hung or was lost, and a host that computes wrongly, are no reason to wait for somebody who starts the job again. What
a rank's own error explains is: a mistake, a fault of the program, too little memory.

SLURM takes nodes to leave out only for a job that waits. A job that was just requeued waits, although its script still runs: that
has SLURM's KillWait (30 s) left, and ignores SIGTERM.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmJobEnvironment

from m2i2.cluster.control import require_job_id, shown_state
from m2i2.cluster.following import ran_out_of_memory
from m2i2.cluster.jobs import LostRank
from m2i2.cluster.options import cluster_options_of
from m2i2.cluster.start import outcome
from m2i2.cluster.submission import RECORD, Submitted, read_record, run_of
from m2i2.excluded import excluded_hosts, same_host
from m2i2.exits import guarded
from m2i2.files import parse_json, read_bytes, read_object, read_tail, write_json
from m2i2.ownership import require_own_folder
from m2i2.terminal import say
from m2i2.training.checkpoint import MANIFEST, Checkpoints
from m2i2.training.stopping import EXIT_STOPPED
from m2i2.training.watching.watch import RECORD as HANGS


def reason(submitted: Submitted, member: int, code: int, run: Path, excluded: Sequence[str], age: float) -> str:
    """Why the job is to be started again; empty where it is not.

    ``excluded``: its nodes that compute wrongly. ``age``: seconds since this start of the job began.
    """
    if code == EXIT_STOPPED:
        return ""
    if excluded:
        return f"{', '.join(excluded)} computes wrongly"
    ends = [outcome(submitted.result(member, rank)) for rank in range(submitted.ranks)]
    if any(end.error and end.kind != LostRank.__name__ for end in ends) or ran_out_of_memory(submitted, member):
        return ""
    if hang := _hang(run, age):
        return hang
    return "a rank was lost" if code > 128 or any(end.kind == LostRank.__name__ for end in ends) else ""


def _hang(run: Path, age: float) -> str:
    """The rank that was ended for a hang, where that is the last thing that the run's watchers have noted, in this start."""
    try:
        last = parse_json(read_tail(run / HANGS, 8 << 20).strip().split("\n")[-1].encode())
        hosts = {one["rank"]: one["host"] for one in last["ranks"]}
        ended = last["kind"] == "hang" and time.time() - last["time"] <= age
        return f"rank {last['rank']:d} on {hosts[last['rank']]} hung" if ended else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def nodes_to_leave_out(hosts: Sequence[str], nodes: str) -> list[str]:
    """Of the job's ``nodes`` (as SLURM writes them), the names of those that are among ``hosts``."""
    if not hosts:
        return []
    found = []
    for line in _asked("scontrol", "show", "node", "-o", nodes).splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        names = (fields.get("NodeName", ""), fields.get("NodeHostName", ""))
        if any(same_host(host, name) for host in hosts for name in names if name):
            found.append(names[0])
    return found


def may_go_on(record: Path, run: Path, most: int) -> bool:
    """Count a requeue in ``record``; False where the run went back ``most`` times already without a new checkpoint."""
    newest = next((path.name for path in Checkpoints(run / "checkpoints").all() if (path / MANIFEST).exists()), "")
    try:
        before = parse_json(read_bytes(record, 1 << 16))
        count = int(before["requeues"]) if before["checkpoint"] == newest else 0
    except (OSError, ValueError, KeyError, TypeError):
        count = 0
    write_json(record, {"checkpoint": newest, "requeues": count + 1})
    return count < most


def requeue(job_id: str, leave_out: Sequence[str]) -> None:
    """Put the running job back into the queue; it starts again without the nodes ``leave_out``, too."""
    before = re.search(r"(?:^|\s)ExcNodeList=(\S+)", _asked("scontrol", "show", "job", "-o", job_id))
    known = [before[1]] if before and before[1] != "(null)" else []
    _asked("scontrol", "requeue", job_id)
    if leave_out:
        _asked("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join([*known, *leave_out])}")


def _asked(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode:
        say(f"{' '.join(words)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
    return done.stdout


def _decide(folder: Path, code: int, age: float) -> int:
    require_own_folder(folder)
    job_id = require_job_id(SlurmJobEnvironment().job_id)
    submitted = read_record(folder)
    member = submitted.job_ids.index(job_id) if job_id in submitted.job_ids else 0
    if submitted.tasks[member].stage == "evaluate" or shown_state(job_id) != "RUNNING":
        return 0
    run = Path(read_object(folder / RECORD, "record of a job")["working_folder"]) / run_of(submitted.tasks[member])
    leave_out = nodes_to_leave_out(excluded_hosts(run), os.environ.get("SLURM_JOB_NODELIST", ""))
    if not (why := reason(submitted, member, code, run, leave_out, age)):
        return 0
    most = cluster_options_of(folder / "cluster.yaml").requeues
    if not may_go_on(folder / f"{job_id}_requeues.json", run, most):
        say(f"Job {job_id}: {why}. It went back to the queue {most} times without a new checkpoint, and ends here.", flush=True)
        return 0
    without = f" without {', '.join(leave_out)}" if leave_out else ""
    say(f"Job {job_id}: {why}. It goes back to the queue{without}, and resumes from its newest checkpoint.", flush=True)
    requeue(job_id, leave_out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``aftermath FOLDER CODE SECONDS``: a job folder, the exit code of its ranks, and how long the batch script has run."""
    folder, code, seconds = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _decide(Path(folder), int(code), float(seconds) + 1.0))


if __name__ == "__main__":
    raise SystemExit(main())
