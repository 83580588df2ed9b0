"""Disks that are full or cannot be written."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from m2i2.training.checkpoint import Checkpoints
from tests.faults.runs import SETTINGS, Watched, losses, run_to_its_end, torchrun
from tests.launching import launch


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    """A file system mounted at ``folder``; needs root."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = ["training.keep=9", "training.max_steps=12"]
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs") as small:
        (tmp_path / "run").symlink_to(small)
        run = Watched([*torchrun(2), "--shards", shards, *SETTINGS, *words], tmp_path)
        assert run.wait() != 0
        errors = [line for line in run.output.splitlines() if line.startswith(("error", "fault"))]
        assert "): Saving the checkpoint run/checkpoints/step-00000006 failed" in errors[0]
        assert "No space left on device" in errors[0] and "start the same command again to resume" in errors[0]
        newest, passed_over = Checkpoints(small / "checkpoints").newest()
        assert newest is not None and newest.name == "step-00000004" and not passed_over
        subprocess.run(["mount", "-o", "remount,size=40m", str(small)], check=True)
        assert "Resuming after step 4" in run_to_its_end(torchrun(2), shards, tmp_path, *words)
        assert losses(run.run) == losses(undisturbed)[:12]


def test_full_disk_under_the_log(shards: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "run", "-t", "tmpfs", "-o", "size=40k,mode=755", "tmpfs"):
        # TensorBoard's thread, which may meet the full disk first, prints a traceback of its own
        words = ["training.save_every=1000", "monitor.tensorboard=off", "validation.every=0"]
        done = launch("pretrain", ["--shards", shards, *SETTINGS, *words], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr and "start the same command again" in done.stderr
    assert "Traceback" not in done.stderr


def test_read_only_output(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    with mounted(tmp_path / "run", "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs") as run:
        assert not os.access(run, os.W_OK)
        done = launch("pretrain", ["--shards", shards, *SETTINGS], tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Cannot write to run: Read-only file system. Choose another --output." in done.stderr
        assert "Traceback" not in done.stderr
        assert make_shards(["captions", "phantoms", "--output", str(run / "shards"), "--count", "4"]) == 2
        assert "Read-only file system" in capsys.readouterr().err
