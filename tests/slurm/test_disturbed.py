"""One training run of two nodes with two ranks each, disturbed in every way that SLURM has, is the undisturbed one.

At first it looks after itself: a rank hangs, a node computes wrongly, a rank is killed. Then SLURM disturbs it.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launching import command
from tests.launching import environment as plain_environment
from tests.preloaded import run
from tests.slurm.cluster import HERE, Cluster, Following, until

STEPS = 40
SETTINGS = ["--preset", "tiny", "training.precision=float32", "training.batch=16", "training.log_every=1", "training.epochs=12"]
SETTINGS += ["training.save_every=4", f"training.max_steps={STEPS}", "objectives.queue=40", "training.hang_seconds=12"]
PLANTED = {"HANG_AT": "3:5", "WRONG_ON": "node2:1", "KILL_AT": "1:7"}
"""Rank 3 hangs in step 6; in the start after that node2 is wrong; rank 1 is killed in step 8."""
LOSSES = ("loss", "mim", "mlm", "itm", "itc")


def log(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def samples(folder: Path) -> dict[tuple[int, int], list[int]]:
    """(step, rank) -> the samples that the rank trained on in the step, the last time that it did."""
    found = {}
    for rank in range(4):
        for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines():
            row = json.loads(line)
            found[row["step"], rank] = row["items"]
    return found


def hashes(run: Path) -> dict[str, str]:
    manifest = json.loads((run / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())
    return {name: manifest["files"][f"{name}.safetensors"]["sha256"] for name in ("model", "teacher", "queue", "optimizer")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disturbed")
    for name in ("there", "here"):
        (folder / f"samples-{name}").mkdir()
    return folder


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, shards: Path, folder: Path) -> str:
    """What the submitter saw of the run."""
    asked = ["--nodes", "2", "--gpus", "0", "--tasks", "2", "--cpus", "1", "--time", "2:00:00"]
    words = ["pretrain", *asked, "--follow", "--", "--shards", shards / "captions", "--output", "there", *SETTINGS]
    place = {"RECORD_SAMPLES": str(folder / "samples-there"), "STEP_SECONDS": "0.3", **PLANTED}
    with cluster.following(words, folder, **place) as following:
        following.says("is submitted")
        job = following.text().split()[1]
        until(lambda: len(log(folder / "there")) >= 9 or following.process.poll() is not None, "the run to look after itself")
        stopped_early(following, 0)
        for number, disturb in enumerate((user_signal, preempted, requeued, node_lost), 1 + len(PLANTED)):
            rows = len(log(folder / "there"))
            until(lambda rows=rows: len(log(folder / "there")) >= rows + 3, f"steps before {disturb.__name__}")  # type: ignore[misc]
            disturb(cluster, job)
            until(lambda: int(cluster.job(job, "Restarts")) == number, f"the restart after {disturb.__name__}")  # noqa: B023
            until(lambda: cluster.job(job, "JobState") == "RUNNING", f"start {number + 1}")
            stopped_early(following, number)
        assert following.code() == 0, following.text()
        return following.text()


def stopped_early(following: Following, number: int) -> None:
    assert following.process.poll() is None, f"after disturbance {number}: {following.text()}"


def user_signal(cluster: Cluster, job: str) -> None:
    cluster.ask("scancel", "--signal=USR2", job)


def preempted(cluster: Cluster, job: str) -> None:
    more = ["--partition=high", "--nodes=3", "--ntasks-per-node=3", "--output=/dev/null"]
    cluster.ask("sbatch", *more, "--wrap=srun --ntasks-per-node=3 true")


def requeued(cluster: Cluster, job: str) -> None:
    cluster.ask("scontrol", "requeue", job)


def node_lost(cluster: Cluster, job: str) -> None:
    cluster.end_node("node3")
    until(lambda: cluster.job(job, "JobState") == "PENDING", "the job to be waiting for the lost node")
    cluster.start_node("node3")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, folder: Path) -> Path:
    """The same run on four ranks of this machine, under DeepSpeed's own launcher."""
    words = [*command("pretrain", 4), "--shards", str(shards / "captions"), "--output", "here", *SETTINGS]
    path = f"{HERE / 'recording'}:{os.environ.get('PYTHONPATH', '')}"
    env = {**plain_environment(), "PYTHONPATH": path, "RECORD_SAMPLES": str(folder / "samples-here")}
    done = run(words, folder, env, 900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "here"


def test_every_disturbance_is_told_and_survived(disturbed: str) -> None:
    assert "is submitted" in disturbed and "squeue -j" in disturbed and "scancel" in disturbed
    assert disturbed.count("Signal 12: saved after step") >= 2, "the signal and the preemption"
    assert disturbed.count("Resuming after step") == 6, "not at the first start, and not where the preflight refused"
    for number in range(2, 9):
        assert f"RUNNING, start {number}" in disturbed
    assert disturbed.rstrip().endswith("is done.")


def test_a_hang_a_wrong_node_and_a_lost_rank_send_it_back_to_the_queue(disturbed: str, folder: Path) -> None:
    assert "rank 3 on node2 hung. It goes back to the queue, and resumes" in disturbed
    wrong = "float32 products of whole numbers: 1 of 256 rows are wrong (the first is row 3)"
    for rank in (2, 3):
        assert f"Preflight: wrong: rank {rank} on node2: {wrong}" in disturbed
    assert "node2 computes wrongly. It goes back to the queue without node2, and resumes" in disturbed
    assert "a rank was lost. It goes back to the queue, and resumes" in disturbed
    (line,) = (folder / "there" / "exclude_hosts.txt").read_text().splitlines()
    assert line.startswith("node2  # preflight: ")
    assert disturbed.count("Preflight of 4 rank(s) on 2 node(s) in ") == 8
    assert disturbed.partition("without node2")[2].count(" on node2") == 0


def test_its_losses_are_those_of_four_local_ranks(disturbed: str, undisturbed: Path, folder: Path) -> None:
    mine, theirs = log(folder / "there"), log(undisturbed)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == list(range(1, STEPS + 1))
    for a, b in zip(mine, theirs, strict=True):
        for name in LOSSES:
            assert a[name] == pytest.approx(b[name], abs=1e-6), (a["step"], name)


def test_it_consumed_the_same_samples(disturbed: str, undisturbed: Path, folder: Path) -> None:
    there, here = samples(folder / "samples-there"), samples(folder / "samples-here")
    assert len(here) == STEPS * 4
    assert there == here


def test_it_ends_in_the_same_weights(disturbed: str, undisturbed: Path, folder: Path) -> None:
    assert hashes(folder / "there") == hashes(undisturbed)


def test_its_job_folder_says_everything(disturbed: str, folder: Path, cluster: Cluster) -> None:
    (job_folder,) = (folder / "runs" / "jobs").iterdir()
    record = json.loads((job_folder / "job.json").read_text())
    assert record["settings"][0]["training"]["batch"] == 16
    assert record["working_folder"] == str(folder)
    job = record["job_ids"][0]
    for rank in range(4):
        assert f"global_rank={rank}(4)" in (job_folder / f"{job}_{rank}_log.out").read_text()
    again = (job_folder / "resume.sh").read_text()
    assert "--output there" in again and "pretrain --cluster" in again
    done = subprocess.run(["sh", job_folder / "resume.sh"], env=cluster.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cluster.ask("scancel", done.stdout.split()[1])
