"""Launchers started as a user starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.preloaded import run

_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


def environment() -> dict[str, str]:
    """This process's environment, with the environment's own programs first and without a process group."""
    kept = {key: value for key, value in os.environ.items() if key not in _PROCESS_GROUP}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    # one thread: with several, matrix products differ in the last bit from run to run
    return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "M2I2_THREADS": "1"}


def command(launcher: str, ranks: int) -> list[str]:
    """How a launcher is started on ``ranks`` processes."""
    script = str(ROOT / "launchers" / f"{launcher}.py")
    if ranks == 1:
        return [sys.executable, script]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return ["deepspeed", "--master_port", str(port), "--num_gpus", str(ranks), script]


def launch(
    launcher: str, words: Sequence[object], folder: Path, ranks: int = 1, seconds: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run a launcher in ``folder`` and return its outcome."""
    return run([*command(launcher, ranks), *map(str, words)], folder, environment(), seconds)


def succeed(launcher: str, words: Sequence[object], folder: Path, ranks: int = 1) -> str:
    """Run a launcher that must succeed; returns what it printed."""
    done = launch(launcher, words, folder, ranks)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
