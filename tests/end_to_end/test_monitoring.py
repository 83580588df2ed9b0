"""What a run shows and measures while it goes on, and that measuring does not change what is trained."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.config import PretrainingConfig
from m2i2.models.flops import pretraining_flops
from m2i2.options import from_dict
from m2i2.training.profiling import read_trace
from tests.launching import command, environment, launch, succeed

STEPS = 6
SETTINGS = [
    "--preset",
    "tiny",
    "--shards",
    "captions",
    "--output",
    "run",
    "training.precision=float32",
    "training.batch=16",
    "training.log_every=1",
    "training.save_every=3",
    "validation.pairs=32",
    "objectives.queue=40",
]


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "run" / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())
    return {name: manifest["files"][f"{name}.safetensors"]["sha256"] for name in ("model", "teacher", "queue", "optimizer")}


def on_a_terminal(words: list[str], folder: Path) -> str:
    """What a launcher writes onto a terminal 140 characters wide."""
    ours, theirs = pty.openpty()
    place = {**environment(), "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    with (folder / "out").open("w") as out:
        process = subprocess.Popen([*command("pretrain", 1), *words], cwd=folder, env=place, stdout=out, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.wait(300) == 0, (folder / "out").read_text()[-2000:] + shown.decode()[-2000:]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    words = ["captions", "phantoms", "--output", str(folder / "captions"), "--count", "320", "--side", "64"]
    assert make_shards(words) == 0
    return folder / "captions"


def place(folder: Path, shards: Path) -> Path:
    (folder / "captions").symlink_to(shards)
    return folder


@pytest.fixture(scope="module")
def watched(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with everything on, before a terminal."""
    folder = place(tmp_path_factory.mktemp("watched"), shards)
    words = [*SETTINGS, f"training.max_steps={STEPS}", "validation.every=2", "monitor.wandb=offline", "monitor.tensorboard=on"]
    words.append("monitor.peak_tflops=0.4")
    return folder, on_a_terminal(words, folder)


def test_a_terminal_shows_the_run_live(watched: tuple[Path, str]) -> None:
    _, shown = watched
    for word in (
        "mim",
        "itc",
        "from",
        "lr",
        "temperature",
        "samples/s",
        "data wait",
        "MFU",
        "memory",
        "GiB",
        "0 steps, 0 samples",
        "left",
    ):
        assert word in shown, word
    assert "validation at step 6" in shown and "recall@1/5/10" in shown
    assert "6/6" in shown and any(bar in shown for bar in "▁▂▃▄▅▆▇█")


def test_the_share_of_the_peak_is_that_of_the_counted_work(watched: tuple[Path, str]) -> None:
    folder, _ = watched
    config = from_dict(PretrainingConfig, json.loads((folder / "run" / "settings.json").read_text()))
    for row in rows(folder, "log.jsonl"):
        per_second = row["mfu"] * 0.4e12 / row["samples_per_s"]
        least, most = (sum(pretraining_flops(config, tokens, 16).values()) for tokens in (4, config.data.max_tokens))
        assert 0.99 * least < per_second < 1.01 * most


def test_validation_measures_losses_retrieval_and_pictures(watched: tuple[Path, str]) -> None:
    folder, _ = watched
    measured = rows(folder, "validation.jsonl")
    assert [row["step"] for row in measured] == [2, 4, 6]
    for row in measured:
        assert row["loss"] == pytest.approx(row["mim"] + row["mlm"] + row["itm"] + row["itc"], rel=1e-5)
        for way in ("image_to_text", "text_to_image"):
            places = [row[f"{way}_r{k}"] for k in (1, 5, 10)]
            assert 0 <= places[0] <= places[1] <= places[2] <= 100
        assert row["pairs"] == 32
    assert measured[-1]["mim"] < measured[0]["mim"], "it learns"
    sheet = np.asarray(Image.open(folder / "run" / "validation" / "reconstructions-00000006.png").convert("RGB")).astype(int)
    original, masked, restored = (sheet[14:78, left : left + 64] for left in (0, 68, 136))

    def patches_that_differ(other: np.ndarray) -> int:
        return int((abs(original - other).reshape(8, 8, 8, 8, 3).sum(axis=(1, 3, 4)) > 0).sum())

    assert 0 < patches_that_differ(masked) <= 10, "15 % of 64 patches"
    assert patches_that_differ(restored) <= 10, "visible patches stay as they are"
    examples = json.loads((folder / "run" / "validation" / "retrieval-00000006.json").read_text())["image_to_text"]
    assert len(examples) == 6
    for example in examples:
        assert (folder / "run" / "validation" / example["image"]).exists()
        assert len(example["found"]) == 3 and all(found["caption"] for found in example["found"])
        assert all(found["right"] for found in example["found"] if found["caption"] == example["caption"])


def test_tensorboard_and_wandb_hold_the_figures(watched: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = watched
    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    log = rows(folder, "log.jsonl")
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("training/loss")] == [(r["step"], r["loss"]) for r in log]
    assert [e.step for e in events.Scalars("validation/image_to_text_r5")] == [2, 4, 6]
    assert [e.step for e in events.Images("validation/reconstructions")] == [2, 4, 6]
    (stored,) = (folder / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = stored.read_bytes()
    for name in (b"training/loss", b"validation/text_to_image_r10", b"validation/reconstructions", b"training/temperature"):
        assert name in content, name


def test_measuring_does_not_change_what_is_trained(watched: tuple[Path, str], shards: Path, tmp_path: Path) -> None:
    words = [*SETTINGS, f"training.max_steps={STEPS}", "validation.every=0", "monitor.tensorboard=off"]
    done = launch("pretrain", words, place(tmp_path, shards))
    assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(tmp_path) == hashes(watched[0])
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "validation.jsonl").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == STEPS and "loss" in lines[0] and "samples/s" in lines[0] and "left" in lines[0], "plain lines, no terminal"


def test_two_ranks_measure_the_same_and_a_resumed_run_goes_on(watched: tuple[Path, str], shards: Path, tmp_path: Path) -> None:
    words = [*SETTINGS, "validation.every=2"]
    succeed("pretrain", [*words, "training.max_steps=4"], place(tmp_path, shards), 2)
    assert "Resuming after step 4" in succeed("pretrain", [*words, f"training.max_steps={STEPS}"], tmp_path)
    expected, found = rows(watched[0], "validation.jsonl"), rows(tmp_path, "validation.jsonl")
    assert [row["step"] for row in found] == [2, 4, 6]
    for one, other in zip(expected, found, strict=True):
        for name in ("loss", "mim", "mlm", "itm", "itc"):
            assert other[name] == pytest.approx(one[name], abs=1e-4), (one["step"], name)
        assert all(abs(other[name] - one[name]) <= 100 / 32 for name in one if name.endswith(("r1", "r5", "r10")))


def test_a_run_traces_a_few_steps_and_a_resumed_one_need_not(shards: Path, tmp_path: Path) -> None:
    words = [*SETTINGS, "validation.every=0"]
    out = succeed("pretrain", [*words, "training.max_steps=5", "training.profile=1"], place(tmp_path, shards))
    trace = tmp_path / "run" / "trace.json.gz"
    assert "Trace of 1 step(s)" in out and "aten::" in out
    assert len([e for e in read_trace(trace) if e.get("name", "").startswith("ProfilerStep")]) == 1
    written = trace.stat().st_mtime_ns
    out = succeed("pretrain", [*words, f"training.max_steps={STEPS}"], tmp_path)
    assert "Resuming after step 5" in out and "race" not in out and trace.stat().st_mtime_ns == written


def test_a_split_that_is_not_there_is_said(shards: Path, tmp_path: Path) -> None:
    out = succeed("pretrain", [*SETTINGS, "training.max_steps=1", "validation.split=dev"], place(tmp_path, shards))
    assert "No validation: the shards have no split 'dev'" in out


def test_features_in_the_queue_that_reveal_their_age_are_said(shards: Path, tmp_path: Path) -> None:
    words = [*SETTINGS, "training.max_steps=8", "validation.every=4", "objectives.queue=96", "objectives.projection=8"]
    fast = ["objectives.momentum=0.5", "optimizer.lr=1e-2", "optimizer.warmup_epochs=0"]
    out = succeed("pretrain", [*words, *fast], place(tmp_path, shards))
    early, late = rows(tmp_path, "validation.jsonl")
    assert "queue_age_image" not in early, "the queue still holds random rows"
    told = max(late["queue_age_image"], late["queue_age_text"])
    assert 0.5 < told <= 1
    assert f"Warning: the features in the queue reveal their age: a linear regression explains {100 * told:.0f} %" in out
