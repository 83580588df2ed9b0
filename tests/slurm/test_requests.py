"""What is refused, or printed, before anything is submitted; no cluster is needed."""

from pathlib import Path

import pytest

from m2i2.cli.slurm import main
from tests.slurm.cluster import HERE, Cluster


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--gpus", "0", "--", "trainig.epochs=1"], "Unknown setting 'trainig.epochs'"),
        (
            ["pretrain", "--gpus", "3", "--", "--preset", "tiny", "training.batch=31"],
            "training.batch=31 does not divide by 3 ranks",
        ),
        (["pretrain", "--gpus", "0", "--time", "soon"], "time='soon' is not a time limit"),
        (["pretrain", "--gpus", "0", "--time", "5"], "signal_delay=300 seconds before a time limit of 5"),
        (["pretrain", "--gpus", "2", "--tasks", "3"], "a node has one rank per GPU"),
        (["pretrain", "--cluster", "lab.yaml"], "Unknown setting 'node'; did you mean nodes?"),
        (["pipeline", "--output", "o", "--questions", "q"], "Give either --pretrain OPTIONS or the --checkpoint"),
        (["sweep", "finetune", "--output", "o", "--grid", "training.seed"], "--grid training.seed needs values"),
        (["follow", "nowhere"], "Cannot read the record of a job nowhere/job.json"),
        (["collect", "nowhere"], "Cannot read the study nowhere/study.json"),
    ],
)
def test_mistakes_are_refused_before_anything_is_submitted(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.yaml").write_text("node: 2\n")
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lab.yaml"]


def test_a_machine_without_slurm_says_so(tmp_path: Path) -> None:
    nowhere = Cluster(HERE)
    words = ["pretrain", "--gpus", "0", "--", "--preset", "tiny"]
    done = nowhere.slurm(words, tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "There is no sbatch on this machine" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert nowhere.slurm([*words[:1], "--dry-run", *words[1:]], tmp_path, PATH=str(tmp_path)).stdout.startswith("#!/bin/bash")
