"""The process beside a rank. It looks at the rank's heartbeat, and the one of rank 0 hears of all ranks and names who hangs.

It runs as a program of its own (`python -I -S sentinel.py`), without the rest of the project: 10 MB, and no lock, thread or
collective of the rank's that could hang with it. Sentinels talk through TCP; each message carries the run's secret.

A rank whose heartbeat is overdue by half of its bound is warned of, with the host, what the system says of the process and where
its Python stands. At the bound, the rank at fault is killed, so that its peers lose their connection to it and end; a peer that
does not is killed 15 seconds later.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import beat as beats
import process as processes

_POLL = 0.5
"""Seconds between two looks."""
_PAUSE = 6.0
"""Seconds between two looks that mean that this process was stopped itself, and so the rank: a suspended job, a paused machine."""
_AFTERWARDS = 15.0
"""Seconds that a rank gets to end by itself after the one at fault was killed."""
_LONGEST = 64_000
"""Bytes of a message."""
Report = dict[str, Any]


class Peers:
    """The connection to the other sentinels: rank 0's listens, the others call it."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._secret, self._first = order["secret"], order["rank"] == 0
        self._sockets: dict[socket.socket, bytes] = {}
        self._ranks: dict[socket.socket, int] = {}
        self.gone: set[int] = set()
        """Ranks whose sentinels have closed their connection: they ended, which is not a hang."""
        self._listener = socket.socket(fileno=order["listener"]) if order["listener"] >= 0 else None
        self._address = (order["host"], order["port"]) if order["port"] and not self._first else None
        if self._listener:
            self._listener.setblocking(False)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to any other sentinel."""
        return bool(self._sockets)

    @property
    def first_host(self) -> str:
        """Where rank 0's sentinel is."""
        return self._address[0] if self._address else ""

    def send(self, message: Report) -> None:
        """To rank 0's sentinel; from it, to all others."""
        if self._address and not self._sockets:
            try:
                self._sockets[socket.create_connection(self._address, timeout=2)] = b""
            except OSError:
                return
        line = json.dumps({**message, "secret": self._secret}).encode()[: _LONGEST - 1] + b"\n"
        for one in list(self._sockets):
            try:
                one.sendall(line)
            except OSError:
                self._drop(one)

    def receive(self, seconds: float) -> list[Report]:
        """What came within so many seconds."""
        found: list[Report] = []
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            sources = [*self._sockets, *([self._listener] if self._listener else [])]
            if not sources:
                time.sleep(left)
                break
            for one in select.select(sources, [], [], left)[0]:
                if one is self._listener:
                    connection, _ = one.accept()
                    connection.settimeout(2)
                    self._sockets[connection] = b""
                else:
                    found += self._lines(one)
        return found

    def _lines(self, one: socket.socket) -> list[Report]:
        try:
            data = one.recv(_LONGEST)
        except OSError:
            data = b""
        *lines, rest = (self._sockets[one] + data).split(b"\n")
        if not data or len(rest) > _LONGEST:
            self._drop(one)
            return []
        self._sockets[one] = rest
        found = []
        for line in lines:
            try:
                message = json.loads(line)
                if message.pop("secret") == self._secret:
                    found.append(message)
                    if "rank" in message:
                        self._ranks[one] = int(message["rank"])
                        self.gone.discard(self._ranks[one])
            except (ValueError, KeyError, AttributeError, TypeError):
                self._drop(one)
                return []
        return found

    def _drop(self, one: socket.socket) -> None:
        self._sockets.pop(one, None)
        if one in self._ranks:
            self.gone.add(self._ranks.pop(one))
        one.close()


class Sentinel:
    """The watch over one rank, and on rank 0 over all of them."""

    def __init__(self, order: dict[str, Any]) -> None:
        """``order``: what watch.py has written."""
        self.rank, self.ranks, self.pid = order["rank"], order["ranks"], order["pid"]
        self._heart, self._stacks, self._record = beats.Heart(order["heart"]), order["stacks"], order["record"]
        self._peers, self._host = Peers(order), socket.gethostname()
        self._reports: dict[int, Report] = {}
        self._heard: dict[int, float] = {}
        self._awake, self._looked = time.monotonic(), time.monotonic()
        self._warned: tuple[int, int] | None = None
        self._condemned = 0.0

    def run(self) -> None:
        """Until the rank ends."""
        while os.getppid() == self.pid and (phase := self._heart.read().phase) != beats.ENDED:
            if phase == beats.LOST:
                self._tell_lost()
                return
            mine = self.look()
            if self.rank:
                self._peers.send(mine)
            self._reports[self.rank], self._heard[self.rank] = mine, time.monotonic()
            for message in self._peers.receive(_POLL):
                if "end" in message:
                    self._obey(message)
                elif message.get("rank") in range(1, self.ranks):
                    self._reports[message["rank"]], self._heard[message["rank"]] = message, time.monotonic()
            self._notice_pause()
            if self.rank == 0:
                self._judge()
            self._last_resort(mine)

    def _notice_pause(self) -> None:
        """Where this process was stopped, silence counts from now on."""
        now = time.monotonic()
        if now - self._looked > _PAUSE:
            self._awake = now
        self._looked = now

    def look(self) -> Report:
        """What this sentinel knows of its rank."""
        self._notice_pause()
        now, beat = time.monotonic(), self._heart.read()
        age = now - max(beat.since, self._awake)
        report: Report = {"rank": self.rank, "host": self._host, "pid": self.pid, "age": age, **beat._asdict()}
        before = self._reports.get(self.rank, {})
        if age > beat.bound / 2:
            if before.get("since") == beat.since and "calls" in before and age < beat.bound:
                report = {**before, "age": age}
            else:
                report |= self._examined(beat)
        self._looked = time.monotonic()
        return report

    def _examined(self, beat: Any) -> Report:
        stack = processes.stack_of(self.pid, self._stacks)
        workers = []
        for pid in processes.children_of(self.pid) if beat.phase == beats.DATA else []:
            if pid != os.getpid():
                calls = processes.training_thread(processes.stack_of(pid, self._stacks))
                workers.append({"pid": pid, "state": processes.state_of(pid), "calls": calls[:4]})
        calls = processes.training_thread(stack)
        return {"state": processes.state_of(self.pid), "calls": calls[:6], "workers": workers[:16], "stack": stack[:9_000]}

    def _tell_lost(self) -> None:
        """Name the ranks that are gone, once this rank has lost contact; its process waits for that before it ends."""
        self._peers.receive(2 * _POLL + 0.2)
        if self._condemned:
            return
        if self.rank and not self._peers.connected:
            self._say(f"Lost: rank 0 on {self._peers.first_host} is gone, or the connection to it.")
        for rank in sorted(self._peers.gone):
            report = self._reports.get(rank, {})
            self._say(
                f"Lost: rank {rank} on {report.get('host', 'an unknown host')} (process {report.get('pid', '?')}) is gone, or the "
                f"connection to it; it had done {report.get('step', 0)} steps."
            )

    # --- on rank 0

    def _judge(self) -> None:
        """Warn of the rank at fault, or end it."""
        now = time.monotonic()
        overdue, most = [], 0.0
        for rank in set(range(self.ranks)) - self._peers.gone:
            report = self._reports.get(rank)
            silent = now - max(self._heard.get(rank, self._awake), self._awake)
            bound = report["bound"] if report else self._reports[0]["bound"]
            age = (report["age"] if report else 0.0) + (silent if silent > 4 * _POLL else 0.0)
            if age > bound / 2:
                overdue.append((self._innocence(rank, silent), rank, age))
                most = max(most, age / bound)
        if not overdue:
            if self._warned is not None:
                self._say(f"Rank {self._warned[0]} goes on: its heartbeat is back.")
                self._warned = None
            return
        _, rank, age = min(overdue)
        key = (rank, int(self._reports.get(rank, {}).get("step", -1)))
        if most < 1.0:
            if self._warned != key:
                self._warned = key
                self._say(f"Warning: {self._described(rank, age)} It will be ended if this goes on.")
                self._keep("slow", rank, age)
        elif not self._condemned:
            self._say(f"Hang: {self._described(rank, age)} It is ended; the same command resumes from the newest checkpoint.")
            self._keep("hang", rank, age)
            verdict = {"end": rank}
            self._peers.send(verdict)
            self._obey(verdict)

    def _innocence(self, rank: int, silent: float) -> tuple[bool, bool, int, bool, int]:
        """The least of these is at fault: who is not heard of, who stands still, who is behind, who waits for no other rank, and
        of those that all wait, who waits where the fewest do.
        """
        report = self._reports.get(rank)
        if report is None or silent > 4 * _POLL + 5.0:
            return (False, False, -1, False, 0)
        calls = report.get("calls", [])
        alike = sum(one.get("calls", [])[:1] == calls[:1] for one in self._reports.values())
        return (True, report.get("state", "") not in processes.STATES, report["step"], processes.in_collective(calls), alike)

    def _described(self, rank: int, age: float) -> str:
        report = self._reports.get(rank)
        if report is None:
            return f"rank {rank} has not been heard of."
        others = sorted(one["step"] for other, one in self._reports.items() if other != rank)
        where = "; ".join(report.get("calls", [])[:3]) or "its Python does not answer"
        text = (
            f"rank {rank} on {report['host']} (process {report['pid']}) has been {beats.PHASES[report['phase']]} after step "
            f"{report['step']} for {age:.1f} s"
        )
        text += f" (a step takes {report['usual']:.2g} s)" if report["usual"] else ""
        text += f"; the others have done {others[len(others) // 2]} steps" if others else ""
        if report.get("state") in processes.STATES:
            text += f"; the process {processes.STATES[report['state']]}"
        text += f". It stands at {where}."
        for worker in report.get("workers", []):
            stands = "; ".join(worker["calls"][:2]) or processes.STATES.get(worker["state"], "no Python")
            text += f" Its loader process {worker['pid']} stands at {stands}."
        peers = [(r, one.get("calls", [])) for r, one in sorted(self._reports.items()) if r != rank]
        if waiting := [r for r, calls in peers if processes.in_collective(calls)]:
            text += f" Waiting for it, or for each other: {self._places(waiting)}."
        return text

    def _places(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} at {self._reports[rank]['calls'][0]}" for rank in ranks[:4])

    def _keep(self, kind: str, rank: int, age: float) -> None:
        """Append what was found to hangs.jsonl of the run."""
        reports = [one for _, one in sorted(self._reports.items())]
        line = json.dumps({"kind": kind, "time": time.time(), "rank": rank, "seconds": age, "ranks": reports}) + "\n"
        with contextlib.suppress(OSError):  # a disk that is full or gone is no reason to let a run hang
            record = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            os.write(record, line.encode())
            os.close(record)

    def _say(self, text: str) -> None:
        plain = "".join(c if c.isprintable() else "?" for c in text)
        sys.stderr.write(plain + "\n")
        sys.stderr.flush()

    # --- the end

    def _obey(self, verdict: Report) -> None:
        if not self._condemned:
            self._condemned = time.monotonic() + (0.0 if verdict["end"] == self.rank else _AFTERWARDS)

    def _last_resort(self, mine: Report) -> None:
        """Kill the rank where that was decided, or where nobody decides any more."""
        if self._condemned and time.monotonic() >= self._condemned:
            self._kill()
        elif not self._condemned and mine["age"] > 1.25 * mine["bound"] + 10.0:
            self._say(f"Hang: rank {self.rank} on {self._host}, and no word from the sentinel of rank 0. It is ended.")
            self._kill()

    def _kill(self) -> None:
        """End the rank and its loader processes: one that is stuck in a read never looks for its parent."""
        for pid in (self.pid, *filter(processes.answers, processes.children_of(self.pid))):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The process's whole life; its order comes as JSON on the standard input."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    Sentinel(json.loads(sys.stdin.readline())).run()


if __name__ == "__main__":
    main()
