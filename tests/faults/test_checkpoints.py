"""Checkpoints that are incomplete, damaged or another model's."""

import shutil
from pathlib import Path

from m2i2.training.checkpoint import Checkpoints
from tests.faults.conftest import STEPS
from tests.faults.runs import SETTINGS, Watched, copy_of, losses, tensors, torchrun
from tests.launching import launch, succeed


def test_incomplete_and_corrupt_checkpoints_are_passed_over(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = copy_of(undisturbed, tmp_path / "copy")
    checkpoints = folder / "run" / "checkpoints"
    (checkpoints / f"step-{STEPS:08d}" / "manifest.json").unlink()
    teacher = checkpoints / f"step-{STEPS - 2:08d}" / "teacher.safetensors"
    data = bytearray(teacher.read_bytes())
    data[-1] ^= 1
    teacher.write_bytes(data)
    words = ["--shards", shards, *SETTINGS, f"training.max_steps={STEPS - 3}", "training.keep=1"]
    assert "Nothing left to do" not in (out := succeed("pretrain", words, folder))
    assert f"Passed over the checkpoint step-{STEPS:08d}: it has no manifest.json: the save did not finish." in out
    assert f"Passed over the checkpoint step-{STEPS - 2:08d}: teacher.safetensors does not match its hash." in out
    assert f"Resuming after step {STEPS - 4}" in out
    found = {path.name for path in checkpoints.iterdir()}
    aside = {f"step-{step:08d}.damaged" for step in (STEPS, STEPS - 2)}
    assert found == {f"step-{STEPS - 3:08d}", "latest"} | aside, "damaged ones do not count among those kept"


def test_no_complete_checkpoint_is_no_new_run(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = copy_of(undisturbed, tmp_path / "copy")
    for model in (folder / "run" / "checkpoints").glob("step-*/model.safetensors"):
        model.unlink()
    done = launch("pretrain", ["--shards", shards, *SETTINGS], folder)
    assert done.returncode == 2, done.stderr
    assert "is complete (step-00000060: model.safetensors is missing; step-00000058: " in done.stderr
    assert "Traceback" not in done.stderr
    assert losses(folder / "run") == losses(undisturbed), "the log is untouched"


def test_a_checkpoint_of_another_architecture(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = ["--shards", shards, *SETTINGS, f"start.checkpoint={undisturbed}", "vision.width=48", "vision.heads=3"]
    done = launch("pretrain", words, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "does not fit the model in" in done.stderr and "(48,) in the model" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    folder = copy_of(undisturbed, tmp_path / "copy")
    done = launch("pretrain", ["--shards", shards, *SETTINGS, "vision.depth=3"], folder)
    assert done.returncode == 2, done.stderr
    assert "was trained with other settings (vision.depth)" in done.stderr
    assert tensors(folder / "run", STEPS) == tensors(undisturbed, STEPS)


def test_checkpoints_that_are_removed_while_the_run_goes_on_are_named(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = ["training.save_every=20", "training.max_steps=40"]
    run = Watched([*torchrun(2), "--shards", shards, *SETTINGS, *words], tmp_path)
    checkpoints = run.run / "checkpoints"
    assert run.wait_until((checkpoints / "latest").exists), run.output[-3000:]
    processes = run.tree()
    while run.run.exists():
        for process in processes:
            process.suspend()
        if writing := list(checkpoints.glob(".writing-*")):  # not in the middle of a save
            there = []
        else:
            there = sorted(path.name for path in Checkpoints(checkpoints).all())
            shutil.rmtree(checkpoints)
        for process in processes:
            process.resume()
        if not writing:
            break
    assert run.wait() == 0, run.output[-3000:]
    assert f"Warning: {', '.join(there)} is gone from run/checkpoints: something other than this run removed it" in run.output
    assert run.output.count("Warning: ") == 1
    newest, passed_over = Checkpoints(checkpoints).newest()
    assert newest is not None and newest.name == "step-00000040" and not passed_over
    assert losses(run.run) == losses(undisturbed)[:40]
