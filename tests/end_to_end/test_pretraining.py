"""Pretraining through its launcher: resumed runs are the uninterrupted one, whatever the number of ranks."""

import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from m2i2.cli.make_shards import main as make_shards
from m2i2.training.stopping import EXIT_STOPPED
from tests.conftest import ROOT
from tests.launching import command, environment, launch, succeed

STEPS = 10
SETTINGS = [
    "--preset",
    "tiny",
    "training.precision=float32",
    "training.batch=16",
    "training.log_every=1",
    "objectives.queue=40",
    "data.randaugment=2,7",
    "vision.image_size=64",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "captions"
    words = ["captions", "phantoms", "--output", str(folder), "--count", "80", "--side", "64", "--samples-per-shard", "20"]
    assert make_shards(words) == 0
    return folder


def run(shards: Path, folder: Path, steps: int, ranks: int = 1, *words: str) -> str:
    output = ["--shards", shards, "--output", "run", *SETTINGS, f"training.max_steps={steps}", *words]
    folder.mkdir(exist_ok=True)
    return succeed("pretrain", output, folder, ranks)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def hashes(folder: Path, step: int = STEPS) -> dict[str, str]:
    manifest = json.loads((folder / "run" / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    names = ("model", "teacher", "queue", "optimizer")
    return {name: manifest["files"][f"{name}.safetensors"]["sha256"] for name in names}


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    out = run(shards, folder, STEPS)
    assert f"Done: {STEPS} steps" in out
    return folder


def test_a_run_leaves_what_is_needed_to_trust_it(undisturbed: Path) -> None:
    rows = log(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["loss"] == pytest.approx(row["mim"] + row["mlm"] + row["itm"] + row["itc"], rel=1e-5)
    settings = json.loads((undisturbed / "run" / "settings.json").read_text())
    assert settings["training"]["batch"] == 16
    start = json.loads((undisturbed / "run" / "starts.jsonl").read_text().splitlines()[0])
    assert start["versions"]["deepspeed"] and start["versions"]["torch"] and "git" in start


def test_a_resumed_run_is_bit_identical(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(shards, tmp_path, 4)
    assert "Resuming after step 4" in run(shards, tmp_path, STEPS)
    assert hashes(tmp_path) == hashes(undisturbed)
    losses = ("loss", "mim", "mlm", "itm", "itc")
    assert [[r[k] for k in losses] for r in log(tmp_path)] == [[r[k] for k in losses] for r in log(undisturbed)]
    assert "Nothing left to do" in run(shards, tmp_path, STEPS)


def test_two_ranks_train_as_one_and_hand_over_to_one(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(shards, tmp_path, 6, 2)
    assert "Resuming after step 6" in run(shards, tmp_path, STEPS, 1)
    for mine, theirs in zip(log(tmp_path), log(undisturbed), strict=True):
        for name in ("loss", "mim", "mlm", "itm", "itc"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), (mine["step"], name)


def test_a_damaged_checkpoint_is_passed_over(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(shards, tmp_path, STEPS, 1, "training.save_every=4")
    newest = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    out = run(shards, tmp_path, STEPS, 1, "training.save_every=4")
    assert "Passed over the checkpoint step-00000010: model.safetensors does not match its hash" in out
    assert "Resuming after step 8" in out
    assert hashes(tmp_path) == hashes(undisturbed)


def test_the_command_of_the_readme_stops_in_good_order_and_resumes(tmp_path: Path) -> None:
    for name in ("launchers", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = ["deepspeed", "launchers/pretrain.py", "--deepspeed_config", "ds_configs/zero2.json"]
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", 29500)) == 0:
            pytest.skip("DeepSpeed's default port 29500 is taken by another program")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=out, stderr=out, start_new_session=True)
        progress = tmp_path / "runs" / "pretrain-tiny" / "log.jsonl"
        end = time.monotonic() + 900
        while not progress.exists() or not progress.read_text():
            assert process.poll() is None, (tmp_path / "out").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.2)
        # DeepSpeed's launcher answers a signal by killing its ranks: the signal goes to them
        ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "--local_rank=0" in p.cmdline()]
        (rank,) = (p for p in ranks if "-m" not in p.cmdline() and p.ppid() not in {other.pid for other in ranks})
        rank.send_signal(signal.SIGTERM)
        process.wait(300)
    text = (tmp_path / "out").read_text()
    assert "No --shards were given: training on the built-in demo data" in text
    stopped = [line for line in text.splitlines() if "Signal 15: saved after step" in line]
    assert stopped, text[-3000:]
    step = int(stopped[0].split("step ")[1].split(";")[0])
    assert (tmp_path / "runs" / "pretrain-tiny" / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()
    done = subprocess.run(
        [*words, f"training.max_steps={step + 3}"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Resuming after step {step}" in done.stdout


def test_a_single_process_says_with_its_exit_code_that_it_was_stopped(shards: Path, tmp_path: Path) -> None:
    words = ["--shards", str(shards), "--output", "run", *SETTINGS]
    process = subprocess.Popen(
        [*command("pretrain", 1), *words], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    progress, end = tmp_path / "run" / "log.jsonl", time.monotonic() + 600
    while not progress.exists() or not progress.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(300) == EXIT_STOPPED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["training.batch=9"], "training.batch=9 does not divide by 2 ranks"),
        (["training.batch=200"], "fewer than one batch of 200"),
        (["data.split=test"], "no split 'test'; it has train, val"),
    ],
)
def test_bad_settings_end_a_run_of_two_ranks_in_one_paragraph(
    shards: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    words = ["--shards", shards, "--output", "run", "--preset", "tiny", *change]
    done = launch("pretrain", words, tmp_path, 2)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_deepspeed_configuration_that_does_not_fit_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": 64}))
    words = ["--shards", shards, "--output", "run", *SETTINGS, "--deepspeed_config", "c.json"]
    done = launch("pretrain", words, tmp_path)
    assert done.returncode == 2
    assert "c.json sets train_batch_size=64, but training.batch=16 on 1 rank(s)" in done.stderr
    assert "Traceback" not in done.stderr


def test_resuming_with_other_settings_or_data_is_refused(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    base = ["--shards", shards, "--output", "run", *SETTINGS]
    done = launch("pretrain", [*base, "optimizer.lr=1e-5"], tmp_path)
    assert done.returncode == 2
    assert "trained with other settings (optimizer.lr)" in done.stderr
    other = tmp_path / "other"
    words = ["captions", "phantoms", "--output", str(other), "--count", "80", "--seed", "1", "--side", "64"]
    assert make_shards(words) == 0
    done = launch("pretrain", ["--shards", other, "--output", "run", *SETTINGS], tmp_path)
    assert done.returncode == 2
    assert "trained on other data" in done.stderr
    assert hashes(tmp_path) == hashes(undisturbed)
