"""The demo: the main job end to end on synthetic images. Shards, pretraining, finetuning, evaluation, report."""

import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from m2i2.errors import M2I2Error
from m2i2.files import open_to_append
from m2i2.terminal import say

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: launchers/, tools/ and ds_configs/ are no part of the installed package."""
MOST_RANKS = 8
"""More would have too few samples each: the demo's batch is 32."""
MOST_THREADS = 4
"""Of a rank on a CPU: more only wait for one another at the demo's size."""
_LAUNCHER = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING)\]|Detected VISIBLE_DEVICES")
"""How a line begins that DeepSpeed's launcher prints about itself."""


@dataclass(frozen=True)
class Ranks:
    """How many processes train, and where."""

    number: int
    gpus: tuple[str, ...] = ()
    """Numbers or names of their GPUs; empty: the CPU."""
    threads: int = 0
    """Of each rank on the CPU."""

    def __str__(self) -> str:
        ranks = f"{self.number} rank{'s' if self.number > 1 else ''}"
        if self.gpus:
            return f"{ranks} on GPU {', '.join(self.gpus)}"
        return f"{ranks} on the CPU, {self.threads} thread{'s' if self.threads > 1 else ''} each"


def choose_ranks(gpus: Sequence[str], cores: int) -> Ranks:
    """One rank for each GPU, 1, 2, 4 or 8 of them; two on a CPU that has two cores.

    ``gpus``: those that may be used. The batch is the same with any number of ranks, and so is what is computed.
    """
    if gpus:
        number = 1 << (min(len(gpus), MOST_RANKS).bit_length() - 1)
        return Ranks(number, tuple(gpus[:number]))
    number = min(2, cores)
    return Ranks(number, threads=max(1, min(MOST_THREADS, cores // number)))


def found_ranks() -> Ranks:
    """`choose_ranks` of this machine."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    gpus = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return choose_ranks(gpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def steps(out: Path, ranks: Ranks, port: int) -> list[tuple[str, list[str]]]:
    """What the demo does, and the command that does it, one after another."""

    def training(stage: str, *words: str) -> list[str]:
        number = [] if ranks.gpus else ["--num_gpus", str(ranks.number)]  # on GPUs CUDA_VISIBLE_DEVICES tells
        launcher = ["deepspeed", "--master_port", str(port), *number, f"launchers/{stage}.py"]
        return [*launcher, "--deepspeed_config", "ds_configs/zero2.json", "--preset", "tiny", *words]

    captions, questions = str(out / "shards" / "captions"), str(out / "shards" / "vqa")
    pretrained, finetuned = str(out / "pretrain"), str(out / "finetune")
    shards = ["python", "tools/make_shards.py"]
    phantoms = ["phantoms", "--side", "128"]
    return [
        ("generate 2,000 images with captions", [*shards, "captions", *phantoms, "--count", "2000", "--output", captions]),
        ("generate 1,000 images with questions", [*shards, "vqa", *phantoms, "--count", "1000", "--output", questions]),
        (
            "pretrain on images and captions",
            training(
                "pretrain",
                *("--shards", captions, "--output", pretrained),
                *("training.epochs=6", "optimizer.lr=1.6e-3", "optimizer.clip=1"),
            ),
        ),
        (
            "finetune to answer questions",
            training(
                "finetune",
                *("--checkpoint", pretrained, "--shards", questions, "--output", finetuned),
                *("training.epochs=3", "answering.distillation=0", "optimizer.lr=4e-4"),
            ),
        ),
        ("ask the test questions", ["python", "launchers/evaluate.py", "--checkpoint", finetuned, "--shards", questions]),
        ("write the report", ["python", "tools/report.py", pretrained, finetuned, "--output", str(out / "report.html")]),
    ]


def run_demo(out: Path) -> int:
    """Every step, with its command and its time on the terminal; returns the first exit code that is not 0.

    What DeepSpeed's launcher says of itself is appended to ``out``/deepspeed.log. Started again, it goes on where it stopped.
    """
    if not (ROOT / "launchers").is_dir():
        raise M2I2Error(
            f"There are no launchers in {ROOT}: the demo runs from a checkout of the project. Clone it, then: make demo."
        )
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if out.is_relative_to(ROOT):  # commands run there, and are printed to be repeated
        out = out.relative_to(ROOT)
    ranks, log = found_ranks(), out / "deepspeed.log"
    say(f"Training with {ranks}. What DeepSpeed's launcher says goes to {log}.")
    started = time.monotonic()
    todo = steps(out, ranks, _free_port())
    with io.TextIOWrapper(open_to_append(ROOT / log), encoding="utf-8", errors="backslashreplace") as file:
        for number, (what, words) in enumerate(todo, 1):
            say(f"\n[{number}/{len(todo)}] {what}\n$ {shlex.join(words)}", flush=True)
            begun = time.monotonic()
            if code := _run(words, ranks, file):
                say(f"error: step {number} ended with exit code {code}; what it said stands above and in {log}.", file=sys.stderr)
                return code
            say(f"({time.monotonic() - begun:.0f} s)", flush=True)
    say(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. The report is {ROOT / out / 'report.html'}. To ask the model:")
    say(f"$ python tools/app.py --checkpoint {out / 'finetune'} --candidates {out / 'shards' / 'vqa'}")
    return 0


def _run(words: Sequence[str], ranks: Ranks, log: TextIO) -> int:
    """One command, with this interpreter and the programs beside it. Its standard error stays the terminal."""
    places = {"python": [sys.executable], "deepspeed": [str(Path(sys.executable).with_name("deepspeed"))]}
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    if ranks.gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(ranks.gpus)
    elif words[0] == "deepspeed":
        own["M2I2_THREADS"] = os.environ.get("M2I2_THREADS") or str(ranks.threads)
    command = [*places[words[0]], *words[1:]]
    if words[0] == "python":
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}).returncode
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            pass_on(line, log)
    return process.returncode


def pass_on(line: str, log: TextIO) -> None:
    """A line of a training's standard output, to the terminal; one of DeepSpeed's launcher about itself, to ``log``."""
    if _LAUNCHER.match(line):
        log.write(line)
        log.flush()
    else:
        say(line.rstrip("\n"), flush=True)


def _free_port() -> int:
    """A port of the demo's own, so that it runs beside other training on the machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
