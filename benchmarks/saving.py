"""How long a save stops the training: ours in the background and in the foreground, the way of version 0.2, and PyTorch's own.

    python benchmarks/saving.py --folder /tmp/saves            # the preset paper, 3.5 GB; every contender in a process of its own
    python benchmarks/saving.py --folder /tmp/saves --only dcp

The state is that of a real task and engine on one rank without a GPU. `pause` is how long the training's thread stands still, for
the first save and for later ones (the median); `copy` is what copying the state in the host's memory takes by itself (the least of
three, with ours); `whole` is the time until the checkpoint is sealed; `slower` says how much longer matrix products take while it
is written. PyTorch's own is torch.distributed.checkpoint.async_save, by a thread and by a process; it writes no hashes.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from m2i2.backends.choice import choose
from m2i2.models.pretraining import PretrainingModel
from m2i2.presets import preset
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.checkpoint import Checkpoints, seal
from m2i2.training.local import LocalEngine
from m2i2.training.processes import Process
from m2i2.training.saving import Saver

CONTENDERS = ("before", "foreground", "background", "dcp", "dcp-thread", "dcp-process")


def state(name: str) -> tuple[Any, PretrainingTask, LocalEngine]:
    """Settings, task and engine of a preset, with moments."""
    config = preset(name)[0]
    with torch.device("meta"):  # the values do not matter
        student = PretrainingModel(config.vision, config.text, config.objectives)
    task = PretrainingTask(student.to_empty(device="cpu"), config, torch.float32)
    engine = LocalEngine(task.student, config.optimizer, choose(torch.device("cpu")), 1)
    task.placed()
    zeros = {f"{key}.{n}": torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq") for n, p in task.student.named_parameters()}
    engine.load_moments(zeros, 1)
    return config, task, engine


def tensors_of(task: PretrainingTask, engine: LocalEngine) -> dict[str, dict[str, Tensor]]:
    """The state, for each file of a checkpoint."""
    modules = {"model": task.student, **task.beside}
    return {name: dict(module.state_dict()) for name, module in modules.items()} | {"optimizer": engine.moments().tensors}


def as_before(files: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Version 0.2: cloned, written by the library, read again for the hashes."""
    folder.mkdir(parents=True)
    for name, tensors in files.items():
        save_file({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    seal(folder)


def products(seconds: float, until: Callable[[], bool]) -> float:
    """Matrix products per second, for so long or until something ends."""
    a, count, began = torch.randn(512, 512), 0, time.monotonic()
    while time.monotonic() - began < seconds and not until():
        a @ a
        count += 1
    return count / (time.monotonic() - began)


def contender(only: str, name: str, folder: Path, saves: int) -> dict[str, float]:
    """The figures of one contender."""
    dist.init_process_group("cpu:gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    torch.set_num_threads(1)
    config, task, engine = state(name)
    files = tensors_of(task, engine)
    size = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
    free = products(3.0, lambda: False)
    training = replace(config.training, save_in_background=only == "background")
    process = Process(0, 1, torch.device("cpu"))
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    saver = Saver(replace(config, training=training), task, engine, checkpoints, process, lambda place: place.mkdir())
    pauses, wholes, slower = list[float](), list[float](), list[float]()
    flat = {f"{file}/{key}": t for file, tensors in files.items() for key, t in tensors.items()}
    saver.prepare()
    products(5.0, lambda: False)
    for number in range(saves):
        began = time.monotonic()
        future: Any = None
        if only == "before":
            as_before(files, folder / f"before-{number}")
        elif only == "dcp":
            dcp.save(flat, checkpoint_id=folder / f"dcp-{number}")
        elif only.startswith("dcp-"):
            kind = AsyncCheckpointerType.THREAD if only == "dcp-thread" else AsyncCheckpointerType.PROCESS
            future = dcp.async_save(flat, checkpoint_id=folder / f"dcp-{number}", async_checkpointer_type=kind)
        else:
            saver.begin(number, {"step": number, "skipped_steps": 0})
        pauses.append(time.monotonic() - began)
        thread = saver._thread
        if future is not None or thread is not None:
            ended = future.done if future is not None else lambda thread=thread: not thread.is_alive()
            slower.append(free / products(1e9, ended) - 1)
        saver.finish()
        wholes.append(time.monotonic() - began)
        for old in folder.glob("*-[0-9]"):
            shutil.rmtree(old)
    copies = []
    for _ in range(3 if only == "background" else 0):  # into the same memory as the saves
        began = time.monotonic()
        for (file, key), place in saver._snapshot._memory.items():
            place.copy_(files[file][key])
        copies.append(time.monotonic() - began)
    later = pauses[1:] or pauses
    found = {"gb": size / 1e9, "copy": min(copies, default=0.0), "first pause": pauses[0], "pause": statistics.median(later)}
    return {**found, "whole": statistics.median(wholes), "slower": statistics.median(slower) if slower else 0.0}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--folder", type=Path, required=True, help="where the saves go; on the disk that runs are written to")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--only", choices=CONTENDERS, help="this contender alone, in this process; prints its figures as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        arguments.folder.mkdir(parents=True)
        print(json.dumps(contender(arguments.only, arguments.preset, arguments.folder, arguments.saves)))
        return
    print("| contender | GB | copy, s | first pause, s | pause, s | whole, s | products slower by |\n|---|---|---|---|---|---|---|")
    for only in CONTENDERS:
        folder = arguments.folder / only
        words = [sys.executable, __file__, "--preset", arguments.preset, "--folder", str(folder), "--saves", str(arguments.saves)]
        done = subprocess.run([*words, "--only", only], capture_output=True, text=True)
        shutil.rmtree(folder, ignore_errors=True)
        if done.returncode:
            print(f"| {only} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]} |")
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        seconds = " | ".join(f"{row[key]:.2f}" for key in ("copy", "first pause", "pause", "whole"))
        print(f"| {only} | {row['gb']:.2f} | {seconds} | {row['slower']:.0%} |", flush=True)


if __name__ == "__main__":
    main()
