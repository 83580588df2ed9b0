"""How jobs that do not end well, or not within their limits, are told apart; and what is refused at once."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Following, running, until

TINY = ["--preset", "tiny", "training.precision=float32", "training.batch=16", "training.log_every=1"]
TINY += ["objectives.queue=40"]
ONE = ["--gpus", "0", "--cpus", "1", "--time", "1:00:00"]


def pretraining(shards: Path, output: str, *more: str) -> list[object]:
    return ["--", "--shards", shards / "captions", "--output", output, *TINY, *more]


def test_an_exception_on_one_rank_reaches_the_submitter(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    words = ["pretrain", *ONE, "--nodes", "2", "--follow", *pretraining(shards, "run")]
    done = cluster.slurm(words, tmp_path, RECORD_SAMPLES=str(tmp_path), FAIL_AT="1:2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed on rank 1" in done.stderr
    assert "ZeroDivisionError: as the test wishes" in done.stderr
    assert "sitecustomize.py" in done.stderr and "m2i2/training/trainer.py" in done.stderr, "the traceback"
    assert "resume.sh" in done.stderr


def test_a_mistake_that_shows_on_the_node_is_a_paragraph(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "captions", tmp_path / "captions")
    with cluster.following(
        ["pretrain", *ONE, "--sbatch", "hold", "--follow", *pretraining(tmp_path, "run")], tmp_path
    ) as following:
        following.says("JobHeldUser")
        shutil.rmtree(tmp_path / "captions")
        cluster.ask("scontrol", "release", following.text().split()[1])
        assert following.code() == 2
        text = following.text()
    assert "scontrol release" in text
    assert "error (rank 0): " in text and "captions has no index.json" in text
    assert "Traceback" not in text


def test_a_cancelled_job_is_called_cancelled(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    words = ["pretrain", *ONE, "--follow", *pretraining(shards, "run", "training.epochs=500")]
    with cluster.following(words, tmp_path) as following:
        following.says("step 1/")
        cluster.ask("scancel", following.text().split()[1])
        assert following.code() == 130
        assert "was cancelled" in following.text()
        assert "PENDING" not in following.text().partition("RUNNING")[2], "it did not requeue itself"


@pytest.fixture(scope="module", autouse=True)
def hung(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    """A job whose rank hangs in its first step; the other tests pass the minute until its limit."""
    folder = tmp_path_factory.mktemp("hung")
    words = ["pretrain", *ONE[:-2], "--time", "1", "--signal-delay", "5", "--follow", *pretraining(shards, "run")]
    with cluster.following(words, folder, RECORD_SAMPLES=str(folder), HANG_AT="0:0") as following:
        yield following


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    """A job that needs longer than its limit, beside the other tests: a minute until the signal, a minute to save."""
    folder = tmp_path_factory.mktemp("limited")
    words = ["pretrain", *ONE[:-2], "--time", "2", "--signal-delay", "60", "--follow"]
    words += pretraining(shards, "run", "training.max_steps=150")
    with cluster.following(words, folder, RECORD_SAMPLES=str(folder), STEP_SECONDS="1,0") as following:
        yield following


def test_too_little_memory_is_called_that(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    done = cluster.slurm(["pretrain", *ONE, "--memory", "0.2", "--follow", *pretraining(shards, "run")], tmp_path)
    assert done.returncode == 137, done.stdout + done.stderr
    assert "used more memory than it had asked for" in done.stderr


@pytest.mark.parametrize(
    ("request_words", "message"),
    [
        (["--gpus", "4"], "Requested node configuration is not available. The request is 1 node(s) with 4 rank(s), 4 GPU(s)"),
        (["--gpus", "0", "--partition", "none"], "sbatch refused the job: invalid partition specified: none"),
    ],
)
def test_an_over_asking_request_is_refused(
    cluster: Cluster, shards: Path, tmp_path: Path, request_words: list[str], message: str
) -> None:
    done = cluster.slurm(["pretrain", *request_words, *pretraining(shards, "run", "training.batch=72")], tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_request_that_no_node_can_ever_meet_is_pointed_out(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    words = ["pretrain", *ONE, "--nodes", "9", "--follow", *pretraining(shards, "run", "training.batch=72")]
    with cluster.following(words, tmp_path) as following:
        following.says("): this does not pass by itself; scancel")
        assert re.search(r"PENDING \(Partition(Config|NodeLimit)\)", following.text()), following.text()
        cluster.ask("scancel", following.text().split()[1])
        assert following.code() == 130


def test_gpus_are_asked_for_and_given_to_every_rank(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "gpus: 2\ncpus: 2\ntime: 0:30:00\nmemory: 4\nconstraint: ''\nsetup:\n  - export FROM_SETUP=yes\nsbatch: [comment=ours]\n"
    )
    words = ["pretrain", "--cluster", "lab.yaml", *pretraining(shards, "run")]
    script = cluster.slurm([*words[:3], "--dry-run", *words[3:]], tmp_path).stdout
    for line in ("gpus-per-node=2", "ntasks-per-node=2", "cpus-per-task=2", "mem=4096M", "time=30", "signal=USR2@300"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --comment=ours\n" in script and "#SBATCH --requeue\n" in script and "\nexport FROM_SETUP=yes\n" in script
    assert not (tmp_path / "runs").exists()
    done = cluster.slurm([*words[:3], "--follow", *words[3:]], tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"2 GPU\(s\) on node[12] \(CUDA_VISIBLE_DEVICES='0,1'\), but PyTorch", done.stderr), done.stderr


def test_without_accounting_a_forgotten_job_is_called_vanished(shards: Path, tmp_path: Path) -> None:
    with running(ACCT="0", NODES="1") as cluster:
        words = ["pretrain", *ONE, "--sbatch", "hold", "--follow", *pretraining(shards, "run")]
        with cluster.following(words, tmp_path) as following:
            following.says("JobHeldUser")
            controller = int((cluster.folder / "slurmctld.pid").read_text())
            os.kill(controller, signal.SIGKILL)
            until(lambda: _gone(controller), "the controller's end")
            subprocess.run(["slurmctld", "-c"], env=cluster.environment(), check=True)
            assert following.code() == 1, following.text()
        assert "does not answer" in following.text() or "GONE" in following.text()
        assert "keeps no accounts of ended jobs here (sacct does not answer)" in following.text()
        assert "it vanished" in following.text()


def _gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_a_job_that_hangs_until_its_limit_is_called_timed_out(hung: Following) -> None:
    assert hung.code() == 124, hung.text()
    assert "(pretrain) was ended at its time limit (00:01:00) before it could save" in hung.text()
    assert "--signal-delay" in hung.text()


def test_a_job_goes_on_after_its_limit(limited: Following) -> None:
    assert limited.code() == 0, limited.text()
    assert "this job is timed-out" in limited.text()
    assert "Signal 12: saved after step" in limited.text() and "Resuming after step" in limited.text()
