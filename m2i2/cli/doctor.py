"""``tools/doctor.py``: is this machine ready, what is missing, and what to do about it."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from m2i2.diagnosis import Finding, examine
from m2i2.exits import EXIT_USER_ERROR, guarded
from m2i2.files import read_rows
from m2i2.terminal import say

DESCRIPTION = """Examine this machine: Python, versions, GPUs, bfloat16, collectives, DeepSpeed, apex, shared memory, disk, SLURM.
Each line says what was found; a note or a fault says what to do. Exit code 0, or 2 where there is a fault."""

EXAMPLES = """examples:
  python tools/doctor.py
  python tools/doctor.py --train             also train two steps on two ranks, on synthetic images (under a minute)
  python tools/doctor.py --json > doctor.json
  torchrun --nproc-per-node 8 tools/doctor.py --preflight --folder runs
  srun --ntasks-per-node 8 --gpus-per-node 8 python tools/doctor.py --preflight --folder runs
      measure every rank in under a minute: products, memory, disk, clock, shared memory, a sum over all ranks
"""
_SIGNS = {"ok": ("ok", "32"), "note": ("note", "33"), "fault": ("FAULT", "31")}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="doctor.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--train", action="store_true", help="also train two steps on two ranks")
    parser.add_argument(
        "--preflight", action="store_true", help="measure this rank, and the others of the launcher that started it, instead"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where runs will be written (default: here)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _preflight(arguments) if arguments.preflight else _doctor(arguments))


def _preflight(arguments: argparse.Namespace) -> int:
    """Measure all ranks, as a run does before it starts, and say what was found; nothing is excluded."""
    import torch

    from m2i2.precision import autocast_dtype
    from m2i2.preflight.check import examine_ranks
    from m2i2.training.processes import join, leave

    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        from submitit.slurm.slurm import SlurmJobEnvironment

        from m2i2.cluster.jobs import join_ranks

        join_ranks(SlurmJobEnvironment())
    process = join()
    dtype = autocast_dtype("auto", process.device) if process.device.type == "cuda" else torch.float32
    outcome = examine_ranks(process, dtype, arguments.folder.resolve())
    leave()
    if process.first and arguments.json:
        verdicts = [asdict(one) for one in outcome.verdicts]
        say(json.dumps({"ranks": [asdict(one) for one in outcome.reports], "verdicts": verdicts}, indent=2))
    elif process.first:
        say(outcome.text)
        for one in outcome.verdicts:
            _tell(Finding(one.where, "note" if one.kind == "warning" else "fault", one.found, one.remedy))
    return EXIT_USER_ERROR if outcome.refused else 0


def _doctor(arguments: argparse.Namespace) -> int:
    folder = next(f for f in (arguments.folder.resolve(), *arguments.folder.resolve().parents) if f.is_dir())
    findings: list[Finding] = []
    for finding in examine(folder):
        findings.append(finding)
        if not arguments.json:
            _tell(finding)
    if arguments.train:
        findings.append(try_training())
        if not arguments.json:
            _tell(findings[-1])
    faults = sum(finding.status == "fault" for finding in findings)
    if arguments.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        notes = sum(finding.status == "note" for finding in findings)
        say(f"\n{faults} fault(s), {notes} note(s). " + ("Fix the faults first." if faults else "Training can run here."))
    return EXIT_USER_ERROR if faults else 0


def _tell(finding: Finding) -> None:
    word, colour = _SIGNS[finding.status]
    sign = f"{word:<6}"
    if sys.stdout.isatty():
        sign = f"\033[{colour}m{sign}\033[0m"
    say(f"{finding.subject:<14} {finding.found}", flush=True, sign=f"{sign} ")
    if finding.remedy:
        say(f"{'':21} -> {finding.remedy}", flush=True)


def try_training(seconds: float = 600) -> Finding:
    """Two optimizer steps of the preset tiny on synthetic images: two ranks, or one where there is a single GPU."""
    import torch

    from m2i2.data.shards.building import Encoding, build
    from m2i2.data.sources import open_source

    ranks = min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2
    code = "import sys; from m2i2.cli.pretrain import main; raise SystemExit(main(sys.argv[1:]))"
    words = [
        "--preset",
        "tiny",
        "--shards",
        "shards",
        "--output",
        "run",
        "training.batch=8",
        "training.max_steps=2",
        "training.log_every=1",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))}
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        build(open_source("captions", "phantoms", None, count=40), shards, Encoding(side=64), options={})
        try:
            done = subprocess.run(
                [*launcher, sys.executable, "-c", code, *words],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            remedy = "The ranks may not reach each other: check firewalls on the loopback and NCCL_DEBUG=INFO."
            return Finding("training", "fault", f"{ranks} rank(s) did not finish two steps in {seconds:.0f} s", remedy)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if line.startswith(("error", "fault"))), "")
            text = said or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return Finding("training", "fault", f"{ranks} rank(s) ended with code {done.returncode}: {text}", "Fix what it names.")
        rows = read_rows(Path(folder) / "run" / "log.jsonl")
    losses = ", ".join(f"{row['loss']:.3f}" for row in rows)
    return Finding("training", "ok", f"{ranks} rank(s) trained {len(rows)} steps and saved a checkpoint (losses {losses})")
