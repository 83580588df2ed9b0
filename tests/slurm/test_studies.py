"""Pipelines and sweeps: chains and arrays of jobs, and one table of what came out."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.end_to_end.test_ablation import RECIPE
from tests.slurm.cluster import Cluster, until

ONE = ["--gpus", "0", "--cpus", "1", "--time", "1:00:00"]
TINY = "--preset tiny training.precision=float32 training.batch=8 training.log_every=1"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as f:
        return list(csv.DictReader(f))


def test_the_lines_of_the_documentation_go_from_shards_to_results(cluster: Cluster, tmp_path: Path) -> None:
    """A pipeline of three stages on two nodes, as docs/clusters.md prints it."""
    for name in ("tools", "launchers"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = (ROOT / "docs" / "clusters.md").read_text().split("```sh\n")[1].split("```")[0]
    assert len(lines.splitlines()) < 15
    done = subprocess.run(
        ["bash", "-e", "-c", lines], cwd=tmp_path, env=cluster.environment(), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "runs" / "study"
    jobs = [Path(job) for job in json.loads((study / "study.json").read_text())["jobs"]]
    records = [json.loads((job / "job.json").read_text()) for job in jobs]
    assert [record["name"] for record in records] == ["pretrain", "finetune", "evaluate"]
    assert [record["after"] for record in records] == ["", *(f"afterok:{record['job_ids'][0]}" for record in records[:2])]
    assert "all weights from runs/study/pretrain/checkpoints/step-00000006" in done.stdout
    results = json.loads((study / "vqa" / "evaluation" / "results.json").read_text())
    (row,) = table(study)
    assert row["run"] == "vqa" and row["state"] == "COMPLETED"
    for kind in ("closed", "open", "overall"):
        assert float(row[f"test {kind}"]) == results["views"]["test"]["model"][kind]["accuracy"]


def test_the_rest_of_a_failed_pipeline_is_cancelled(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    words = ["pipeline", *ONE, "--output", "study", "--questions", shards / "vqa"]
    words += ["--checkpoint", "nowhere", "--finetune", TINY, "--follow"]
    done = cluster.slurm(words, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "There is no checkpoint nowhere." in done.stderr
    assert "(evaluate-vqa) was cancelled" in done.stderr
    assert table(tmp_path / "study")[0]["state"] == "finetune FAILED"


@pytest.fixture(scope="module")
def swept(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    grid = ["--grid", "training.seed", "0", "1", "--grid", "objectives.itc", "0", "1", "--throttle", "3"]
    words = ["sweep", "pretrain", *ONE, "--output", "sweep", *grid, "--follow"]
    words += ["--", *TINY.split(), "--shards", shards / "captions", "training.max_steps=2"]
    done = cluster.slurm(words, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_sweep_is_one_array_and_one_right_table(swept: Path, cluster: Cluster) -> None:
    rows = table(swept / "sweep")
    assert [(row["training.seed"], row["objectives.itc"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    for row in rows:
        run = swept / "sweep" / row["run"]
        settings = json.loads((run / "settings.json").read_text())
        assert settings["training"]["seed"] == int(row["training.seed"])
        assert settings["objectives"]["itc"] == float(row["objectives.itc"])
        last: dict[str, Any] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        assert (float(row["loss"]), row["step"], row["state"]) == (last["loss"], "2", "COMPLETED")
    assert len({row["loss"] for row in rows}) == 4
    (job_folder,) = (swept / "runs" / "jobs").iterdir()
    ids = json.loads((job_folder / "job.json").read_text())["job_ids"]
    assert [job.partition("_")[2] for job in ids] == ["0", "1", "2", "3"] and len({job.split("_")[0] for job in ids}) == 1
    script = next(job_folder.glob("*_submission.sh")).read_text()
    assert "#SBATCH --array=0-3%3\n" in script


def test_a_table_is_collected_again_from_the_files(swept: Path, cluster: Cluster) -> None:
    before = (swept / "sweep" / "table.md").read_text()
    done = cluster.slurm(["collect", "sweep"], swept)
    assert done.returncode == 0, done.stderr
    assert before in done.stdout
    assert before.startswith("| run | training.seed | objectives.itc | state | step | loss |\n")


def test_a_recipe_runs_as_arrays_and_is_recorded(cluster: Cluster, tmp_path: Path) -> None:
    """launchers/ablate.py --cluster, then --collect: as the same recipe run on one machine (tests/end_to_end/test_ablation.py)."""
    variants = {"drawn": {"shards": "shards/vqa", "variants": ["full", "no MIM"], "seeds": 1}}
    recipe = {**RECIPE, "start": [], "datasets": variants}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "lab.yaml").write_text("gpus: 0\ncpus: 1\ntime: 1:00:00\n")
    words = [sys.executable, str(ROOT / "launchers" / "ablate.py"), "recipe.json", "--work", "work", "--results", "results"]

    def ablate(*more: str) -> str:
        command = [*words, "--output", "RESULTS.md", *more]
        done = subprocess.run(command, cwd=tmp_path, env=cluster.environment(), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = ablate("--cluster", "lab.yaml")
    jobs = re.findall(r"Job (\d+) \((\w+): 2 cells\) is submitted", out)
    assert [stage for _, stage in jobs] == ["pretrain", "finetune", "evaluate"]
    until(lambda: not cluster.ask("squeue", "-h", "-j", ",".join(number for number, _ in jobs)).strip(), "the arrays to end", 1200)
    out = ablate("--collect")
    cells = ["pretraining-full-seed-0", "drawn-full-seed-0", "pretraining-no-mim-seed-0", "drawn-no-mim-seed-0"]
    assert sorted(re.findall(r"(\S+): recorded", out)) == sorted(cells)
    report = (tmp_path / "RESULTS.md").read_text()
    assert "Not run yet" not in report and "| no MIM |" in report
    assert "Nothing is left to do." in ablate("--cluster", "lab.yaml")
