"""A rank's side of the watch: it starts the process beside it, and leaves heartbeats."""

import faulthandler
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from m2i2.exits import lost_another_rank
from m2i2.training.processes import Process
from m2i2.training.watching import beat as beats
from m2i2.training.watching.process import STACK_SIGNAL

RECORD = "hangs.jsonl"
"""What was found, in the run's folder: one line for each warning and each end, with the stacks of all ranks."""
_LONGER = 6
"""How long starting, the first step, saves and measurements may take, in ``training.hang_seconds``."""
_LAST_WORDS = 4.0
"""Seconds that the process beside a rank gets to name the ranks that are gone."""
_STEPS = 10
"""How long a step may take at least, in usual steps."""


class Watch:
    """Heartbeats of this rank, and the process that listens to them, from entering until leaving. Nothing where bound is 0.

    It must be entered before loader processes are started, so that they answer with their stacks too.
    """

    def __init__(self, folder: Path, process: Process, bound: float) -> None:
        """``folder``: the run's; ``bound``: ``training.hang_seconds``."""
        self._folder, self._process, self._bound = folder, process, bound if hasattr(os, "memfd_create") else 0.0
        self._heart: beats.Heart | None = None
        self._sentinel: subprocess.Popen[str] | None = None
        self._stacks: Any = None
        self._step, self._phase, self._usual, self._stepped = 0, beats.STARTING, 0.0, 0.0

    def __enter__(self) -> "Watch":
        """Start the process. Collective."""
        if not self._bound:
            return self
        descriptor = beats.new_file()
        self._heart = beats.Heart(descriptor)
        self.beat(beats.STARTING)
        self._stacks = tempfile.TemporaryFile("a+b", buffering=0)
        faulthandler.register(STACK_SIGNAL, self._stacks, all_threads=True, chain=False)
        listener, meeting = self._meeting()
        order = {
            **{"rank": self._process.rank, "ranks": self._process.ranks, "pid": os.getpid(), "record": str(self._folder / RECORD)},
            **{"heart": descriptor, "stacks": self._stacks.fileno(), "listener": listener.fileno() if listener else -1},
            **meeting,
        }
        passed = [number for number in (descriptor, self._stacks.fileno(), order["listener"]) if number >= 0]
        program = str(Path(__file__).with_name("sentinel.py"))
        words = [sys.executable, "-I", "-S", program]
        self._sentinel = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=passed, text=True)
        assert self._sentinel.stdin
        self._sentinel.stdin.write(json.dumps(order) + "\n")
        self._sentinel.stdin.close()
        os.close(descriptor)
        if listener:
            listener.close()
        return self

    def _meeting(self) -> tuple[socket.socket | None, dict[str, Any]]:
        """Where the sentinels meet, and the run's secret. Collective."""
        hosts: list[Any] = [None] * self._process.ranks
        if self._process.ranks == 1:
            return None, {"host": "", "port": 0, "secret": ""}
        dist.all_gather_object(hosts, socket.gethostname())
        alone = len(set(hosts)) == 1
        found: list[Any] = [None]
        listener = None
        if self._process.first:
            listener = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=self._process.ranks)
            host = "127.0.0.1" if alone else os.environ.get("MASTER_ADDR", hosts[0])
            found = [{"host": host, "port": listener.getsockname()[1], "secret": secrets.token_hex(16)}]
        dist.broadcast_object_list(found, src=0)
        return listener, found[0]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._heart is None or self._sentinel is None:
            return
        if error is not None and self._process.ranks > 1 and lost_another_rank(error):
            self.beat(beats.LOST)
            with suppress(subprocess.TimeoutExpired):  # it says whom it does not hear of any more
                self._sentinel.wait(_LAST_WORDS)
        self.beat(beats.ENDED)
        self._sentinel.kill()  # it has nothing to finish
        self._sentinel.wait()
        faulthandler.unregister(STACK_SIGNAL)

    def beat(self, phase: int) -> None:
        """The rank does this from now on."""
        self._phase = phase
        if self._heart:
            usual = phase in (beats.STEP, beats.DATA) and self._usual
            bound = max(self._bound, _STEPS * self._usual) if usual else _LONGER * self._bound
            self._heart.write(beats.Beat(self._step, phase, beats.now(), bound, self._usual))

    def stepped(self, step: int) -> None:
        """The rank has done so many steps."""
        now = beats.now()
        if self._stepped:
            seconds = now - self._stepped
            self._usual = 0.9 * self._usual + 0.1 * seconds if self._usual else seconds
        self._step, self._stepped = step, now
        self.beat(beats.STEP)

    @contextmanager
    def doing(self, phase: int) -> Iterator[None]:
        """Within it the rank does this; afterwards what it did before."""
        before = self._phase
        self.beat(phase)
        try:
            yield
        finally:
            self.beat(before)
