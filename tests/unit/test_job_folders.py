"""Job folders and cluster files from elsewhere: nothing in them runs, and no word of them becomes another option or line."""

import contextlib
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.slurm import main as slurm
from m2i2.cluster import start
from m2i2.cluster.aftermath import may_go_on, reason
from m2i2.cluster.following import JobState, _Log, _Watch, verdict
from m2i2.cluster.start import Outcome, outcome, result_path
from m2i2.cluster.submission import read_record
from m2i2.errors import M2I2Error
from m2i2.excluded import exclude_host


class Trap:
    """Its pickle makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


RECORD = {"name": "vqa", "tasks": [{"name": "vqa", "stage": "finetune", "words": []}], "job_ids": ["12"], "ranks": 2}


def job_folder(folder: Path, **changes: Any) -> Path:
    """A job folder with the record of one job, which has ended."""
    folder.mkdir(mode=0o700)
    (folder / "job.json").write_text(json.dumps({**RECORD, **changes}))
    return folder


@pytest.fixture
def forgetful_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of a cluster that does not know the job any more."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in (("scontrol", "echo Invalid job id specified; exit 1"), ("sacct", "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


@pytest.mark.usefixtures("forgetful_slurm")
@pytest.mark.parametrize("command", ["follow", "collect"])
def test_no_pickle_of_a_job_folder_is_read(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_folder(tmp_path / "job")
    for rank in range(2):
        (job / f"12_{rank}_result.pkl").write_bytes(pickle.dumps(("error", Trap(tmp_path / "trapped"))))
    member = {"name": "vqa", "settings": {}, "run": str(tmp_path), "evaluation": ""}
    (tmp_path / "study.json").write_text(json.dumps({"members": [member], "jobs": [str(job)]}))
    code = slurm([command, str(job if command == "follow" else tmp_path)])
    told = capsys.readouterr()
    assert not (tmp_path / "trapped").exists()
    assert (code, "GONE" in told.out) == ((1, True) if command == "follow" else (0, True)), told


@pytest.mark.usefixtures("forgetful_slurm")
def test_results_are_read_as_the_job_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_folder(tmp_path / "job")
    submitted = read_record(job)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for rank, error in enumerate((None, M2I2Error("The shards are damaged. Copy them again."))):

        def run(folder: Path, error: Exception | None = error) -> None:
            if error:
                raise error

        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setattr(start, "process_job", run)
        with contextlib.suppress(M2I2Error):
            start.main([str(job)])
    assert outcome(submitted.result(0, 0)) == Outcome("success")
    told, code = verdict(_Watch(submitted, 0, JobState("FAILED")))
    assert code == 2 and told.startswith("error (rank 1): The shards are damaged. Copy them again.\n")


@pytest.mark.parametrize("content", ['["error"]', '{"kind": 1, "message": "", "traceback": ""}', "{", '{"kind": "success"}'])
def test_a_result_that_is_none_counts_as_missing(tmp_path: Path, content: str) -> None:
    path = result_path(tmp_path, "12", 0)
    path.write_text(content)
    assert outcome(path) == Outcome()
    path.unlink()
    os.mkfifo(path)
    assert outcome(path) == Outcome()


def test_a_log_without_end_is_shown_from_its_end(tmp_path: Path) -> None:
    log = _Log(tmp_path / "12_0_log.out")
    assert log.news() == ""
    with log.path.open("wb") as f:
        f.truncate(1 << 40)  # sparse
        f.seek(0, os.SEEK_END)
        f.write(b"the end")
    news = log.news()
    assert news.startswith("(1099503239175 bytes left out)\n") and news.endswith("\0the end") and len(news) < 9 << 20
    assert log.news() == ""


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_job_whose_folder_others_may_write_does_not_start(
    tmp_path: Path, mode: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_folder(tmp_path / "job")
    (job / "12_submitted.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    job.chmod(mode)
    for name, value in (("SLURM_JOB_ID", "12"), ("SLURM_PROCID", "0"), ("SUBMITIT_EXECUTOR", "slurm")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        start.main([str(job)])
    assert "may write in the folder" in capsys.readouterr().err
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"job_ids": ["--version"]}, "'--version' is not a job number"),
        ({"job_ids": ["12\n13"]}, "is not a job number"),
        ({"job_ids": ["../../x"]}, "is not a job number"),
        ({"job_ids": [12]}, "is not a job number"),
        ({"job_ids": []}, "0 job numbers"),
        ({"job_ids": ["12", "13"]}, "2 job numbers, 1 tasks"),
        ({"ranks": 10**9}, "1000000000 ranks"),
        ({"name": "-x"}, "is not a valid name of a job"),
        ({"name": "a\x1b[2J"}, "is not a valid name of a job"),
        ({"name": ["a"]}, "is not a record"),
        ({"tasks": [{"name": "a", "stage": "os", "words": []}]}, "is not a task"),
        ({"tasks": [{"name": "a", "stage": "finetune", "words": [1]}]}, "is not a task"),
        ({"tasks": 3}, "is not a record"),
    ],
)
def test_records_that_no_job_has_are_refused(
    tmp_path: Path, changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm(["follow", str(job_folder(tmp_path / "job", **changes))]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1 and "\x1b" not in told


@pytest.mark.parametrize(
    "study",
    [
        {"members": [{"name": "a", "settings": {}, "run": 3}], "jobs": []},
        {"members": [{"name": "a", "settings": {"x": 1}, "run": "r"}], "jobs": []},
        {"members": [{"name": "a\nb", "settings": {}, "run": "r"}], "jobs": []},
        {"members": [{"name": "a", "settings": [], "run": "r"}], "jobs": []},
        {"members": [], "jobs": [3]},
        {"members": 3, "jobs": []},
    ],
)
def test_studies_that_are_none_are_refused(tmp_path: Path, study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert slurm(["collect", str(tmp_path)]) == 2
    assert "is not a study" in capsys.readouterr().err


NEWLINE = "gpu\ntouch trapped"


@pytest.mark.parametrize(
    "words",
    [
        ["--partition", NEWLINE],
        ["--partition=--wrap=touch"],
        ["--account", NEWLINE],
        ["--qos", "a b"],
        ["--constraint", NEWLINE],
        ["--mail", NEWLINE],
        ["--name", NEWLINE],
        ["--name=-x"],
        ["--name", "../x"],
        ["--sbatch", f"comment={NEWLINE}"],
        ["--sbatch", "comment\ntouch trapped=x"],
        ["--sbatch", ""],
        ["--after", NEWLINE],
        ["--after", "afterok:12\n"],
        ["--jobs", NEWLINE],
    ],
)
def test_a_word_of_the_request_stays_a_word_of_its_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm(["pretrain", "--gpus", "0", "--dry-run", *words, "--", "--preset", "tiny"]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.startswith("error: ") and told.err.count("\n") == 1


def test_what_requests_do_say_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--partition", "gpu,gpu-long", "--constraint", "[a100*2&ib]|h100", "--sbatch", "nice=-5", "--sbatch=--x11"]
    words += ["--after", "afterok:12_3:13,afterany:14", "--name", "seed 1, itc=0"]
    assert slurm(["pretrain", "--gpus", "0", "--dry-run", *words, "--", "--preset", "tiny"]) == 0
    script = capsys.readouterr().out
    assert re.search(r"^#SBATCH --job-name='seed 1, itc=0'$", script, re.MULTILINE) and "#SBATCH --nice=-5\n" in script
    assert "m2i2.cluster.start" in script and "submitit.core._submit" not in script


def ended(job: Path, rank: int, kind: str) -> None:
    """Let a rank of job 12 have left how it ended."""
    path = result_path(job, "12", rank)
    path.write_text(json.dumps({"kind": kind, "message": "", "traceback": ""}))


def test_only_a_lost_rank_a_hang_and_a_wrong_node_send_a_job_back(tmp_path: Path) -> None:
    submitted, run = read_record(job_folder(tmp_path / "job")), tmp_path / "run"
    run.mkdir()
    assert reason(submitted, 0, 127, run, [], 60) == "", "no program"
    assert reason(submitted, 0, 137, run, [], 60) == "a rank was lost", "killed"
    ended(submitted.folder, 1, "LostRank")
    assert reason(submitted, 0, 1, run, [], 60) == "a rank was lost"
    assert reason(submitted, 0, 75, run, [], 60) == "", "stopped, saved and requeued already"
    submitted.log().write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.\n")
    assert reason(submitted, 0, 137, run, [], 60) == "", "too little memory"
    submitted.log().unlink()
    hang = {"kind": "hang", "time": time.time(), "rank": 1, "ranks": [{"rank": 0, "host": "node1"}, {"rank": 1, "host": "node2"}]}
    (run / "hangs.jsonl").write_text(json.dumps(hang) + "\n")
    assert reason(submitted, 0, 137, run, [], 60) == "rank 1 on node2 hung"
    assert reason(submitted, 0, 137, run, [], -1) == "a rank was lost", "the hang was that of an earlier start"
    ended(submitted.folder, 0, "M2I2Error")
    assert reason(submitted, 0, 2, run, [], 60) == "", "a mistake"
    assert reason(submitted, 0, 2, run, ["node2"], 60) == "node2 computes wrongly", "which is an error too"
    assert reason(submitted, 0, 75, run, ["node2"], 60) == ""


def test_a_job_goes_back_so_often_without_a_new_checkpoint_and_no_more(tmp_path: Path) -> None:
    record, run = tmp_path / "12_requeues.json", tmp_path / "run"
    assert [may_go_on(record, run, 2) for _ in range(3)] == [True, True, False]
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004" / "manifest.json").touch()
    assert [may_go_on(record, run, 2) for _ in range(3)] == [True, True, False]
    assert may_go_on(tmp_path / "other", run, 0) is False


def test_what_a_run_excludes_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    exclude_host(tmp_path / "run", "node7", "products")
    words = ["pretrain", "--gpus", "0", "--dry-run", "--sbatch", "exclude=old[1-3]", "--", "--preset", "tiny", "--output", "run"]
    assert slurm(words) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --exclude='old[1-3],node7'\n" in script
    assert script.index("srun ") < script.index("m2i2.cluster.aftermath"), "after the ranks"
