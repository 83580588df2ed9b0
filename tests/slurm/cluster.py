"""A real SLURM of some nodes on this machine, and launchers/slurm.py run against it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import ROOT
from tests.launching import environment

HERE = Path(__file__).parent
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
}


def missing() -> str:
    """Why no cluster can be started here; empty where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM of one's own needs root on Linux"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    lacking = [package for program, package in PACKAGES.items() if not shutil.which(program, path=path)]
    if lacking:
        return f"SLURM is not installed: apt-get install --no-install-recommends {' '.join(lacking)}"
    if subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode:
        return "this container may not make namespaces (unshare), so it cannot stand for two nodes"
    return ""


def until(true: Callable[[], bool], what: str, seconds: float = 1200) -> None:
    """Wait for a condition; fails with ``what`` after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}, which did not happen"
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """Its files lie in ``folder``; its environment is given to what is run on it, and to nothing else."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """For commands on the cluster."""
        base = {key: value for key, value in environment().items() if not key.startswith(("SLURM", "SBATCH"))}
        path = f"{HERE / 'recording'}:{ROOT}"
        return {**base, "PATH": f"{base['PATH']}:/usr/sbin", "SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": path}

    def ask(self, *words: str) -> str:
        """What a SLURM command prints; it must succeed."""
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def job(self, job_id: str, field: str) -> str:
        """A field of `scontrol show job`."""
        text = self.ask("scontrol", "show", "job", "-o", job_id)
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{field}="))

    def slurm(self, words: Sequence[object], folder: Path, seconds: float = 1200, **more: str) -> subprocess.CompletedProcess[str]:
        """Run launchers/slurm.py in ``folder`` to its end."""
        script = [sys.executable, str(ROOT / "launchers" / "slurm.py"), *map(str, words)]
        return subprocess.run(
            script, cwd=folder, env={**self.environment(), **more}, capture_output=True, text=True, timeout=seconds
        )

    @contextmanager
    def following(self, words: Sequence[object], folder: Path, **more: str) -> Iterator["Following"]:
        """launchers/slurm.py --follow beside the test; what it starts is cancelled at the end."""
        script = [sys.executable, "-u", str(ROOT / "launchers" / "slurm.py"), *map(str, words)]
        with (folder / "followed").open("w") as out:
            process = subprocess.Popen(script, cwd=folder, env={**self.environment(), **more}, stdout=out, stderr=out)
            try:
                yield Following(process, folder / "followed", out)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait(60)
                    self.ask("scancel", "--user=root")

    def end_node(self, name: str) -> None:
        """A node loses its power."""
        pid = self.folder / f"node-{name}.pid"
        os.kill(int(pid.read_text()), signal.SIGKILL)
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def start_node(self, name: str) -> None:
        """It comes back."""
        subprocess.run([HERE / "node.sh", self.folder, name], check=True, timeout=300, env=self.environment())


@dataclass(frozen=True)
class Following:
    """A launcher that follows its job."""

    process: subprocess.Popen[bytes]
    output: Path
    _file: IO[str]

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def says(self, text: str, seconds: float = 1200) -> None:
        """Wait for it to print ``text``."""
        until(lambda: text in self.text() or self.process.poll() is not None, f"{text!r} in:\n{self.text()}", seconds)
        assert text in self.text(), self.text()

    def code(self, seconds: float = 1200) -> int:
        """Its exit code."""
        return self.process.wait(seconds)


@contextmanager
def running(**knobs: str) -> Iterator[Cluster]:
    """A cluster, ended with all that runs on it; skips where there cannot be one. ``knobs``: those of up.sh."""
    if why := missing():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="m2i2-slurm-"))
    folder.chmod(0o755)  # munge wants to be reached by everybody
    # of this test session alone: the daemons' ports, and the jobs' numbers, from which their ports are made
    place = (os.getpid() % 40) * 200 + (110 if knobs.get("ACCT") == "0" else 0)
    own = {"PORT": str(10000 + place), "FIRST": str(1 + place)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    try:
        done = subprocess.run(
            [HERE / "up.sh", folder],
            env={**kept, "PATH": f"{kept['PATH']}:/usr/sbin", **own, **knobs},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        yield Cluster(folder)
    finally:
        subprocess.run([HERE / "down.sh", folder], check=True, timeout=300)
        shutil.rmtree(folder, ignore_errors=True)
