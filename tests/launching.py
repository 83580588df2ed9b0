"""Launchers started as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


def environment() -> dict[str, str]:
    """This process's environment, with the environment's own programs first and without a process group."""
    kept = {key: value for key, value in os.environ.items() if key not in _PROCESS_GROUP}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "HF_HUB_OFFLINE": "1"}


def command(launcher: str, ranks: int) -> list[str]:
    """How a launcher is started on ``ranks`` processes."""
    script = str(ROOT / "launchers" / f"{launcher}.py")
    return [sys.executable, script] if ranks == 1 else ["deepspeed", "--num_gpus", str(ranks), script]


def launch(launcher: str, words: Sequence[object], folder: Path, ranks: int = 1, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a launcher in ``folder`` and return its outcome."""
    return subprocess.run(
        [*command(launcher, ranks), *map(str, words)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def succeed(launcher: str, words: Sequence[object], folder: Path, ranks: int = 1) -> str:
    """Run a launcher that must succeed; returns what it printed."""
    done = launch(launcher, words, folder, ranks)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
