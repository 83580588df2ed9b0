"""Every stage of the benchmark measures at small sizes and ends with one JSON object."""

import json
import sys
from pathlib import Path

import pytest
import torch

from m2i2.data.shards.building import Encoding, build
from m2i2.data.sources import open_source
from m2i2.performance import records
from m2i2.performance.pipeline import growth_of_index
from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import run


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["pretrain", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"mfu", "pairs_per_s", "host_peak_rss_gb"}),
        (["finetune", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"mfu", "pairs_per_s", "host_peak_rss_gb"}),
        (["engine", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"ratio", "seconds_per_step_plain"}),
        (["ranking", "--preset", "tiny", "--questions", "2", "--images", "1", "--rounds", "1"], {"mfu", "seconds_per_question"}),
        (["scaling", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"ratio", "pairs_per_s_2_ranks_1_thread"}),
        (["shards", "--rounds", "1", "--side", "64"], {"speedup", "images_per_s_2_workers"}),
        (["data", "--rounds", "1", "--side", "64", "--size", "48"], {"images_per_s_per_core"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_stage_reports(words: list[str], keys: set[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), words[0], "--json", *words[1:]]
    done = run(command, tmp_path, environment(), 300)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["stage"] == words[0] and keys <= set(row)
    assert all(row[key] > 0 for key in keys) and row.get("mfu", 0.5) < 1.5


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "ranking"])
def test_a_stage_is_profiled_and_recorded(stage: str, tmp_path: Path) -> None:
    sizes = {"ranking": ["--questions", "2", "--images", "1", "--rounds", "1"]}.get(stage, ["--batch", "4", "--steps", "1"])
    words = [stage, "--json", "--preset", "tiny", *sizes, "--profile", "trace", "--record", "speed.csv"]
    done = run([sys.executable, str(ROOT / "tools" / "benchmark.py"), *words], tmp_path, environment(), 300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["operators_per_step"] > 100 and found["operator_ms_per_step"] > 0
    assert "aten::" in done.stdout and (tmp_path / "trace" / "trace.json.gz").is_file()
    (row,) = records.read(tmp_path / "speed.csv")
    assert row.what.startswith(stage) and row.number("pairs_per_s") > 0 and row.number("tflops") > 0
    assert row.on_gpu == torch.cuda.is_available() and "speed.csv" not in row.command and stage in row.command


def test_the_loader_is_measured_against_memory(tmp_path: Path) -> None:
    build(open_source("captions", "phantoms", None, count=16), tmp_path / "shards", Encoding(side=64), options={})
    words = [
        "fed",
        "--shards",
        "shards",
        "--json",
        "--preset",
        "tiny",
        "--batch",
        "4",
        "--steps",
        "2",
        "--warm-up",
        "1",
        "data.workers=1",
    ]
    done = run([sys.executable, str(ROOT / "tools" / "benchmark.py"), *words], tmp_path, environment(), 300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ratio"] == pytest.approx(found["pairs_per_s_fed"] / found["pairs_per_s_from_memory"])
    assert found["workers"] == 1 and 0 <= found["data_wait"] < 1


def test_start_up_reads_neither_shards_nor_items() -> None:
    """A million samples in a thousand shards whose files are holes: opened, ordered, resumed; an item read would be damaged."""
    row = growth_of_index(1_000_000, 1_000)
    assert (row["samples"], row["shards"]) == (1_000_000, 1_000)
    assert row["start_s"] < 5 and row["memory_mb"] < 200
