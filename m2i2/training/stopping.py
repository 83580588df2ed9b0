"""Stopping in good order: a signal sets a flag, the ranks agree on it at a step's end, save together and leave."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from m2i2.training.processes import TIMEOUT
from m2i2.training.signals import SIGNALS, early_signal

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop, saved, and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class StopFlag:
    """Listens for SIGTERM, SIGINT and SIGUSR2 until it is left; a second SIGINT ends the process at once.

    It is made as soon as the ranks have met, so that a signal during loading is answered at the end of the first step;
    before that, a signal ends the process as it ends any other, and nothing has been done that could be lost.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._before: dict[int, object] = {s: signal.signal(s, self._catch) for s in SIGNALS}
        self.signal = self.signal or early_signal()

    def __enter__(self) -> "StopFlag":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, news: bool = False) -> tuple[int, bool]:
        """The signal that some rank received (or 0), and whether some rank has ``news``; the same on every rank.

        Collective, on the CPU, and the only such exchange of a step.
        """
        flags = torch.tensor([self.signal, news])
        if dist.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        return int(flags[0]), bool(flags[1])
