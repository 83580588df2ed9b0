"""What fuzzing a reader means: malformed inputs go in, and nothing but the project's own error may come out, within bounds."""

import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from m2i2.errors import M2I2Error

SECONDS = 20
"""No input may keep a reader busy for longer; a valid one takes milliseconds."""
MEMORY = 1 << 30
"""Address space that reading one input may add, bytes; every valid input is far below a megabyte."""


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


def refuses(read: Callable[[bytes], object], data: bytes) -> bool:
    """Whether the reader refuses ``data``; any other error than M2I2Error passes through, and so does `Unbounded`."""
    try:
        with _bounded():
            read(data)
    except M2I2Error as error:
        cause: BaseException | None = error
        while cause := cause.__cause__ or cause.__context__:
            if isinstance(cause, MemoryError):
                raise Unbounded(f"it asked for more than {MEMORY} bytes") from error
        str(error).encode("utf-8", "backslashreplace")
        return True
    return False


@contextmanager
def _bounded() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Unbounded(f"it took more than {SECONDS} s")

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
