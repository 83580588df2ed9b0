"""Ranks against threads: the same global batch on one rank with two threads and on two ranks with one."""

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error


def time_scaling(preset: str, batch: int, steps: int, rounds: int, settings: list[str]) -> dict[str, Any]:
    """Pairs per second of both, alternately ``rounds`` times, and their ratio."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    peaks = {1: 0.0, 2: 0.0}
    for _ in range(rounds):
        for ranks, found in rates.items():
            row = _run(ranks, preset, batch, steps, settings)
            found.append(row["pairs_per_s"])
            peaks[ranks] = max(peaks[ranks], row["host_peak_rss_gb"])
    one, two = (statistics.median(found) for found in rates.values())
    return {
        "preset": preset,
        "batch": batch,
        "pairs_per_s_1_rank_2_threads": one,
        "pairs_per_s_2_ranks_1_thread": two,
        "ratio": two / one,
        "host_peak_rss_gb_1_rank": peaks[1],
        "host_peak_rss_gb_each_of_2_ranks": peaks[2],
    }


def _run(ranks: int, preset: str, batch: int, steps: int, settings: list[str]) -> dict[str, Any]:
    script = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"
    words = ["pretrain", "--json", "--preset", preset, "--batch", str(batch), "--steps", str(steps)]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["deepspeed", "--master_port", str(port), "--no_local_rank", "--num_gpus", str(ranks), str(script)]
    done = subprocess.run([*command, *words, *settings], capture_output=True, text=True, timeout=1800, env=environment)
    lines = [line for line in done.stdout.splitlines() if '"pairs_per_s"' in line]
    if done.returncode or not lines:
        raise M2I2Error(f"The run on {ranks} rank(s) failed: {(done.stderr or done.stdout).strip()[-800:]}")
    line = lines[-1]
    row: dict[str, Any] = json.loads(line[line.index("{") :])
    return row
