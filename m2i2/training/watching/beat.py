"""The heartbeat of a rank: what it does and since when, in memory that the process beside it reads.

Read by sentinel.py, which runs without the rest of the project: nothing but the standard library here.
"""

import mmap
import os
import struct
import time
from typing import NamedTuple

PHASES = ("starting", "computing a step", "waiting for data", "saving", "measuring on held-out data", "ended", "alone")
STARTING, STEP, DATA, SAVING, MEASURING, ENDED, LOST = range(len(PHASES))
_LAYOUT = struct.Struct("qqddd")
SIZE = _LAYOUT.size


class Beat(NamedTuple):
    """A heartbeat."""

    step: int
    """Steps that the rank has done."""
    phase: int
    since: float
    """When it came, by the monotonic clock, which all processes of a machine share."""
    bound: float
    """Seconds after which the next one is overdue."""
    usual: float
    """A recent mean of the seconds of a step; 0 before the first."""


class Heart:
    """Memory that holds one heartbeat, shared by two processes through a file without a name."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of a file of `SIZE` bytes."""
        self._memory = mmap.mmap(descriptor, SIZE)

    def write(self, beat: Beat) -> None:
        """Leave a heartbeat; a microsecond, and no call of the system."""
        _LAYOUT.pack_into(self._memory, 0, *beat)

    def read(self) -> Beat:
        """The last heartbeat."""
        return Beat(*_LAYOUT.unpack_from(self._memory, 0))


def new_file() -> int:
    """The descriptor of an empty file of `SIZE` bytes without a name."""
    descriptor = os.memfd_create("m2i2-heartbeat")
    os.ftruncate(descriptor, SIZE)
    return descriptor


def now() -> float:
    """The clock of heartbeats."""
    return time.monotonic()
