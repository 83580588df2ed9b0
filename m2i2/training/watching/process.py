"""What the system tells of a process that no longer answers: its state, its children, where its Python stands.

Read by sentinel.py, which runs without the rest of the project: nothing but the standard library here.
"""

import os
import signal
import time
from pathlib import Path

STATES = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "D": "waits for a disk or a network file system",
    "Z": "has ended",
    "X": "has ended",
}
"""States of /proc in which a process does nothing for a reason of its own."""
STACK_SIGNAL = getattr(signal, "SIGRTMAX", 36) - 5
"""What a rank and its loader processes answer with their stacks, by a handler in C that needs no lock of Python's."""
_ANSWER = 1.0
"""Seconds that a stack is waited for."""


def state_of(pid: int) -> str:
    """The letter of a process's state; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except (OSError, ValueError):
            continue
    return sorted(found)


def answers(pid: int) -> bool:
    """Whether a process, a rank or a loader process, has a handler for the signal, which would end others."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    except (OSError, ValueError, StopIteration):
        return False
    return bool(caught >> (STACK_SIGNAL - 1) & 1)


def stack_of(pid: int, file: int) -> str:
    """Where the threads of a process stand, the innermost calls first; empty where it does not say.

    ``file``: the descriptor that its handler appends to.
    """
    if not answers(pid):
        return ""
    before = os.fstat(file).st_size
    try:
        os.kill(pid, STACK_SIGNAL)
    except OSError:
        return ""
    size, until = before, time.monotonic() + _ANSWER
    while time.monotonic() < until:
        time.sleep(0.05)
        last, size = size, os.fstat(file).st_size
        if size > before and size == last:
            break
    return os.pread(file, min(size - before, 20_000), before).decode(errors="replace")


def training_thread(stack: str) -> list[str]:
    """The calls of the thread that trains, ``file:line in function``, the innermost first."""
    threads = [part.strip().splitlines() for part in stack.split("\n\n")]
    of_trainer = [lines for lines in threads if any("trainer.py" in line for line in lines)]
    chosen = next(iter(of_trainer), next(iter(threads), []))
    calls = []
    for line in chosen:
        name, _, rest = line.strip().partition('", line ')
        if rest and name.startswith('File "'):
            number, _, function = rest.partition(" in ")
            calls.append(f"{'/'.join(name[6:].split('/')[-3:])}:{number} in {function}")
    return calls


def in_collective(calls: list[str]) -> bool:
    """Whether a thread waits for other ranks: an innermost call belongs to torch.distributed, or to what ranks share."""
    return any("torch/distributed" in call or "shared_memory.py" in call for call in calls[:4])
