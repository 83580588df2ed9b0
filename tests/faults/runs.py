"""Runs of a very small model that tests start, watch and disturb from outside."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil

from tests import preloaded
from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import run

BATCH, ITEMS = 16, 80
STEPS_PER_EPOCH = ITEMS // BATCH
SETTINGS = [
    *("--preset", "tiny", "--output", "run", "training.precision=float32", f"training.batch={BATCH}", "training.epochs=12"),
    *(
        "training.log_every=1",
        "training.log_items=true",
        "training.save_every=2",
        "objectives.queue=40",
        "objectives.projection=16",
    ),
    *("vision.image_size=32", "vision.width=32", "vision.depth=2", "vision.heads=2"),
    *("vision.decoder_width=16", "vision.decoder_depth=1", "vision.decoder_heads=2"),
    *("text.width=32", "text.heads=2", "text.intermediate=64", "text.vocabulary_size=300"),
]
LAUNCHER = str(ROOT / "launchers" / "pretrain.py")


def torchrun(ranks: int) -> list[str]:
    """How ``ranks`` processes are started by torchrun, on a free port of its own."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), LAUNCHER]


def run_to_its_end(launcher: Sequence[str], shards: Path, folder: Path, *more: str) -> str:
    """Pretrain as ``folder/run`` with nobody watching; it must succeed. Returns what it printed."""
    done = run([*launcher, "--shards", str(shards), *SETTINGS, *more], folder, environment(), 900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Watched:
    """A command that runs in ``folder`` with the run ``folder/run``; its output goes to ``folder/output``."""

    started: ClassVar[list["Watched"]] = []
    """All of them, so that a test that fails leaves none behind (see conftest.py)."""

    def __init__(self, words: Sequence[object], folder: Path, extra: dict[str, str] | None = None, afresh: bool = False) -> None:
        """``afresh``: in new interpreters, not in forks of one that has the imports (see tests/preloaded.py)."""
        folder.mkdir(exist_ok=True)
        self.folder, self.run = folder, folder / "run"
        self.seen: set[psutil.Process] = set()
        with (folder / "output").open("w") as out:
            begin = subprocess.Popen if afresh else preloaded.start
            self.process = begin(list(map(str, words)), cwd=folder, env=environment() | (extra or {}), stdout=out, stderr=out)
        self.seen.add(psutil.Process(self.process.pid))
        self.started.append(self)

    @property
    def output(self) -> str:
        """What the command has printed."""
        return (self.folder / "output").read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        """The command's process and all below it, parents first."""
        try:
            top = psutil.Process(self.process.pid)
            found = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self.seen.update(found)
        return found

    def rank(self, number: int) -> psutil.Process | None:
        """The training process of a rank, where it has started."""
        for process in self.tree():
            try:
                above = process.parent()
                if _rank_of(process) == str(number) and above and _rank_of(above) != str(number):
                    return process
            except psutil.Error:
                continue
        return None

    def workers(self, number: int) -> list[psutil.Process]:
        """The loader processes of a rank."""
        rank = self.rank(number)
        self.tree()
        return [child for child in (rank.children() if rank else []) if not is_sentinel(child)]

    def wait_until(self, there: Callable[[], bool], seconds: float = 900) -> bool:
        """Whether ``there`` came true before the command ended."""
        end = time.monotonic() + seconds
        while not there():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.output[-3000:]
            time.sleep(0.005)
        return True

    def wait(self, seconds: float = 900) -> int:
        """The command's exit code."""
        self.tree()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output[-3000:]}") from None

    def kill_all(self) -> None:
        """SIGKILL to every process, the launcher first."""
        for process in self.tree():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(300)


def is_sentinel(process: psutil.Process) -> bool:
    """Whether it is the process beside a rank that watches over it."""
    return any(word.endswith("sentinel.py") for word in process.cmdline())


def _rank_of(process: psutil.Process) -> str | None:
    """The rank that a process is, or that it works for; forked programs carry it in their name."""
    name = process.name()
    return name.removeprefix("rank ") if name.startswith("rank ") else process.environ().get("RANK")


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; none where it is not there."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_logged(run: Path) -> int:
    """The last step in a run's log."""
    rows = lines(run / "log.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def losses(run: Path) -> list[list[float]]:
    """The five losses of every logged step."""
    return [[row[name] for name in ("loss", "mim", "mlm", "itm", "itc")] for row in lines(run / "log.jsonl")]


def items(run: Path) -> list[list[int]]:
    """The samples of every step, in the order of the global batch."""
    rows = lines(run / "items.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["items"] for row in rows]


def tensors(run: Path, step: int) -> dict[str, str]:
    """The hashes of a checkpoint's tensor files."""
    manifest = json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return {name: row["sha256"] for name, row in manifest["files"].items() if name.endswith(".safetensors")}


def assert_each_once_an_epoch(steps: list[list[int]]) -> None:
    """Every sample exactly once in each whole epoch, and never twice in the one begun."""
    for start in range(0, len(steps), STEPS_PER_EPOCH):
        epoch = [item for step in steps[start : start + STEPS_PER_EPOCH] for item in step]
        assert len(set(epoch)) == len(epoch) == BATCH * len(steps[start : start + STEPS_PER_EPOCH])


def assert_gone(processes: set[psutil.Process], seconds: float = 120) -> None:
    """No process is left; loader processes look for their parent every five seconds, and who adopted them may reap them late."""
    end = time.monotonic() + seconds
    while alive := [process for process in processes if _runs(process)]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shared_memory(processes: Iterable[psutil.Process]) -> list[Path]:
    """The files in /dev/shm that torch has made in these processes and that still have a name."""
    return [path for p in processes for path in Path("/dev/shm").glob(f"torch_{p.pid}_*")]


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of a run as ``folder/run``; returns ``folder``."""
    shutil.copytree(run, folder / "run")
    return folder
