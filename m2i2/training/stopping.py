"""Stopping in good order: a signal sets a flag, the ranks agree on it at a step's end, save together and leave."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from m2i2.training.processes import TIMEOUT
from m2i2.training.signals import SIGNALS, early_signal

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop, saved, and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class Agreed(NamedTuple):
    """What the ranks have told each other at the end of a step."""

    signal: int = 0
    """The signal that some rank received, or 0."""
    news: bool = False
    """Whether some rank could not read a sample."""
    overdue: bool = False
    """Whether it is time to save."""
    failed: bool = False
    """Whether the save in flight has failed."""


class StopFlag:
    """Listens for SIGTERM, SIGINT and SIGUSR2 until it is left; a second SIGINT ends the process at once.

    It is made as soon as the ranks have met, so that a signal during loading is answered at the end of the first step;
    before that, a signal ends the process as it ends any other, and nothing has been done that could be lost.
    """

    def __init__(self) -> None:
        self.signal, self._since = 0, 0.0
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._before: dict[int, object] = {s: signal.signal(s, self._catch) for s in SIGNALS}
        if early := early_signal():
            self._catch(early, None)

    def __enter__(self) -> "StopFlag":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        self._since = self._since or time.monotonic()
        self.signal = number

    def left(self, grace: float) -> float:
        """Seconds that are left of a ``grace`` after the signal came to this rank."""
        return grace - (time.monotonic() - self._since if self._since else 0.0)

    def agreed(self, news: bool = False, overdue: bool = False, failed: bool = False) -> Agreed:
        """What some rank knows at the end of a step, the same on every rank. Collective, on the CPU, the only such exchange."""
        flags = torch.tensor([self.signal, news, overdue, failed])
        if dist.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        number, *rest = flags.tolist()
        return Agreed(number, *map(bool, rest))
