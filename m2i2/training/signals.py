"""Stop signals that come while a run is still starting: they wait for the training loop."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

_early: list[int] = []


def listen_early() -> None:
    """Keep a SIGUSR2 that comes from now on for the next `StopFlag`, and one that comes after its end from doing harm."""
    signal.signal(signal.SIGUSR2, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _early.append(number)


def early_signal() -> int:
    """The signal that came early, or 0; it is forgotten here."""
    found = _early[-1] if _early else 0
    _early.clear()
    return found
