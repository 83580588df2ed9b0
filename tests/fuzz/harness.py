"""What fuzzing a reader means: malformed inputs go in, and nothing but the project's own error may come out, within bounds."""

import hashlib
import json
import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.control import BuildContext
from hypothesis.errors import StopTest
from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.strategies import SearchStrategy

from m2i2.errors import M2I2Error

SECONDS = 20
"""Processor time that no input may take more of; a valid one takes milliseconds. On a busy machine it is not the clock's."""
PATIENCE = 900
"""Seconds by the clock after which a reader hangs."""
MEMORY = 1 << 30
"""Address space that reading one input may add, bytes; every valid input is far below a megabyte."""
HELPERS = 2 << 30
"""Bytes that a process which decodes for the reader may take."""

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where the inputs are written: opening a file costs more than reading it."""


class Unbounded(BaseException):
    """An input that takes too long, or asks for too much memory: a finding."""


@dataclass(frozen=True)
class Opened:
    """A reader made ready in a folder of its own."""

    seeds: list[bytes]
    """Valid inputs."""
    read: Callable[[bytes], object]
    """Reads an input through the public door; M2I2Error refuses it."""


@dataclass(frozen=True)
class Reader:
    """A reader of the project, and how its inputs are malformed."""

    name: str
    open: Callable[[Path], Opened]
    malformed: Callable[[list[bytes]], SearchStrategy[bytes]]
    """Mutations of valid inputs that know their structure."""


@dataclass
class Count:
    """Inputs tried, and those of them that the reader refused: the malformed ones."""

    tried: int = 0
    refused: int = 0
    findings: int = 0


def refuses(read: Callable[[bytes], object], data: bytes) -> bool:
    """Whether the reader refuses ``data``; any other error than M2I2Error passes through, and so does `Unbounded`."""
    try:
        with _bounded():
            read(data)
        _bound_helpers()
    except M2I2Error as error:
        cause: BaseException | None = error
        while cause := cause.__cause__ or cause.__context__:
            if isinstance(cause, MemoryError):
                raise Unbounded(f"it asked for more than {MEMORY} bytes") from error
        str(error).encode("utf-8", "backslashreplace")
        _bound_helpers()
        return True
    return False


@contextmanager
def _bounded() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Unbounded(f"it took more than {SECONDS} s of a processor" if number == signal.SIGPROF else "it hangs")

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound_helpers() -> None:
    """`Unbounded` where a child of this process has taken more than `HELPERS`."""
    for number in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
        peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
        if peak > HELPERS:
            raise Unbounded(f"a process that decodes took {peak} bytes")


def explore(reader: Reader, inputs: int, fresh: bool) -> Count:
    """Try ``inputs`` malformed inputs, the same in every run unless ``fresh``; the smallest one that fails is shown."""
    count = Count()
    with tempfile.TemporaryDirectory(prefix="m2i2-fuzz-", dir=IN_MEMORY) as folder:
        opened = reader.open(Path(folder))
        for seed in opened.seeds:
            assert not refuses(opened.read, seed), f"{reader.name} refuses a valid input: {seed[:200]!r}"

        @settings(
            max_examples=inputs,
            derandomize=not fresh,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(reader.malformed(opened.seeds))
        def attempt(data: bytes) -> None:
            count.tried += 1
            count.refused += refuses(opened.read, data)

        run: Any = attempt
        run()
    return count


def portion(reader: Reader, inputs: int, seed: int, findings: Path) -> Count:
    """Try ``inputs`` malformed inputs that follow from ``seed`` in a process of their own, and go on after a finding.

    An input that is a finding lies in ``findings`` afterwards, its traceback beside it: the last one too, where the process died.
    """
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="m2i2-fuzz-", dir=IN_MEMORY) as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * 200, SECONDS * 200))  # ends what no signal's handler can
            (folder / "work").mkdir()
            _try(reader, inputs, seed, findings, folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        state = folder / "count"
        count = Count(*json.loads(state.read_text())) if state.exists() else Count()
        if status:
            _keep(findings, reader.name, (folder / "input").read_bytes(), f"The process ended with {status}.")
            count.findings += 1
    return count


def _try(reader: Reader, inputs: int, seed: int, findings: Path, folder: Path) -> None:
    count = Count()
    opened = reader.open(folder / "work")

    for data in _drawn(reader.malformed(opened.seeds), inputs, seed):
        (folder / "input").write_bytes(data)
        count.tried += 1
        try:
            count.refused += refuses(opened.read, data)
        except (Exception, Unbounded):
            count.findings += 1
            _keep(findings, reader.name, data, traceback.format_exc())
        (folder / "count").write_text(json.dumps([count.tried, count.refused, count.findings]))


def _drawn(strategy: SearchStrategy[bytes], inputs: int, seed: int) -> Iterator[bytes]:
    """Inputs that follow from ``seed``. Hypothesis' own loop looks for the smallest failure, and takes twice as long."""
    random = Random(seed)
    while inputs:
        data = ConjectureData(random=random)
        drawn = None
        with BuildContext(data, wrapped_test=_drawn), suppress(StopTest):
            drawn = data.draw(strategy)
        if drawn is not None:
            inputs -= 1
            yield drawn


def _keep(findings: Path, name: str, data: bytes, what: str) -> None:
    path = findings / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(what)
