"""A trace of a few optimizer steps: which operators and kernels take the time, and how often the host starts work on the device."""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from m2i2.files import unfinished
from m2i2.terminal import say

TRACE = "trace.json.gz"
"""The trace's file in the run's folder, for https://ui.perfetto.dev or chrome://tracing."""
_WAIT = 3
"""Steps of a run before the profiler starts: compilation, capture and the allocator's growth are not what a step costs."""
_WARM_UP = 1
"""Steps that the profiler records and discards, because its own start is part of them."""
_TOP = 12
"""Lines of the table."""
_HOST_CALLS = ("cuda_runtime", "cuda_driver")
_COPY_CALLS = ("cudaMemcpy", "cudaMemset", "cuMemcpy", "cuMemset")
_DEVICE_COPIES = ("gpu_memcpy", "gpu_memset")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Total:
    """All calls of one operator or kernel during the profiled steps."""

    name: str
    calls: int
    seconds: float
    """Self time: without the operators that it calls."""


@dataclass(frozen=True)
class Activity:
    """What a trace says of ``steps`` steps. Times are self times in seconds."""

    steps: int
    operators: tuple[Total, ...]
    """ATen operators and what else PyTorch runs on the host, the slowest first."""
    kernels: tuple[Total, ...]
    """Kernels of the device, the slowest first; empty on a CPU."""
    launches: int
    """Host API calls that launch a kernel or a graph."""
    copies: int
    """Host API calls that copy or fill memory."""
    copy_seconds: float
    """Copies and fills on the device."""

    @classmethod
    def of(cls, events: Iterable[Event], steps: int) -> "Activity":
        """Count the events of a Chrome trace, as Kineto (PyTorch's profiler) writes it; times there are microseconds."""
        complete = [event for event in events if event.get("ph") == "X"]
        kernels = [event for event in complete if event.get("cat") == "kernel"]
        calls = [event for event in complete if event.get("cat") in _HOST_CALLS]
        copies = [event for event in calls if event["name"].startswith(_COPY_CALLS)]
        launches = [event for event in calls if "Launch" in event["name"]]
        return cls(
            steps,
            _totals(_self_times([event for event in complete if event.get("cat") == "cpu_op"])),
            _totals((event["name"], event["dur"]) for event in kernels),
            _distinct(launches),
            _distinct(copies),
            1e-6 * sum(event["dur"] for event in complete if event.get("cat") in _DEVICE_COPIES),
        )

    def per_step(self, device: torch.device) -> dict[str, float]:
        """The figures per step: on a CPU those of ATen operators alone, on a GPU also launches, copies and kernel time."""
        aten = [one for one in self.operators if one.name.startswith("aten::")]
        found = {
            "operators_per_step": sum(one.calls for one in aten) / self.steps,
            "operator_ms_per_step": 1e3 * sum(one.seconds for one in aten) / self.steps,
        }
        if device.type == "cuda":
            found |= {
                "host_launches_per_step": self.launches / self.steps,
                "host_copies_per_step": self.copies / self.steps,
                "kernels_per_step": sum(one.calls for one in self.kernels) / self.steps,
                "kernel_ms_per_step": 1e3 * sum(one.seconds for one in self.kernels) / self.steps,
                "copy_ms_per_step": 1e3 * self.copy_seconds / self.steps,
            }
        return found

    def table(self) -> str:
        """The slowest kernels, or on a CPU the slowest operators: self time and calls per step."""
        rows, kind = (self.kernels, "kernel") if self.kernels else (self.operators, "operator")
        whole = sum(one.seconds for one in rows) or 1.0
        lines = [f"{'ms/step':>10} {'share':>6} {'calls/step':>11}  {kind}"]
        for one in rows[:_TOP]:
            name = one.name if len(one.name) <= 80 else f"{one.name[:77]}..."
            ms = 1e3 * one.seconds / self.steps
            lines.append(f"{ms:10.3f} {one.seconds / whole:6.1%} {one.calls / self.steps:11.1f}  {name}")
        return "\n".join(lines)


def read_trace(path: Path) -> list[Event]:
    """The events of a trace file."""
    with gzip.open(path, "rt", encoding="utf-8") as f:
        events: list[Event] = json.load(f)["traceEvents"]
    return events


def _self_times(events: Iterable[Event]) -> Iterable[tuple[str, float]]:
    """(name, microseconds without nested events) of events that nest on each thread."""
    threads = defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for found in threads.values():
        found.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in found]
        open_ones: list[int] = []
        for number, event in enumerate(found):
            while open_ones and found[open_ones[-1]]["ts"] + found[open_ones[-1]]["dur"] <= event["ts"]:
                open_ones.pop()
            if open_ones:
                own[open_ones[-1]] -= event["dur"]
            open_ones.append(number)
        yield from ((event["name"], seconds) for event, seconds in zip(found, own, strict=True))


def _totals(timings: Iterable[tuple[str, float]]) -> tuple[Total, ...]:
    """Sums by name of (name, microseconds), the largest first."""
    found = defaultdict(list)
    for name, microseconds in timings:
        found[name].append(microseconds)
    totals = [Total(name, len(times), 1e-6 * sum(times)) for name, times in found.items()]
    return tuple(sorted(totals, key=lambda one: -one.seconds))


def _distinct(calls: list[Event]) -> int:
    """Number of calls. A runtime call and the driver call inside it share a correlation id and count once."""
    ids = [event.get("args", {}).get("correlation") for event in calls]
    return len({one for one in ids if one is not None}) + ids.count(None)


class StepProfiler:
    """Writes the trace of ``steps`` steps into a folder and prints its table. With ``steps=0`` it does nothing.

    A trace that cannot be written does not end the run.
    """

    def __init__(
        self, folder: Path, steps: int, device: torch.device, say: Callable[[str], None] = say, *, wait: int = _WAIT
    ) -> None:
        """``wait``: steps before it starts. One more is discarded, because the profiler's start is part of it."""
        self.path, self.steps, self.activity = folder / TRACE, steps, None
        self._device, self._say, self._wait, self._seen = device, say, wait, 0
        self._profile: profile | None = None

    activity: Activity | None
    """What was recorded, once the last of the steps is done."""

    @property
    def before(self) -> int:
        """Steps before the first one that is recorded."""
        return self._wait + _WARM_UP

    def __enter__(self) -> "StepProfiler":
        if self.steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own starts and stops as errors
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
            plan = schedule(wait=self._wait, warmup=_WARM_UP, active=self.steps, repeat=1)
            self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self._profile.start()
        return self

    def step(self) -> None:
        """After each step."""
        if self._profile is None:
            return
        self._seen += 1
        if self._device.type == "cuda" and self._seen in (self.before, self.before + self.steps):
            torch.cuda.synchronize(self._device)  # the trace holds whole steps
        self._profile.step()
        if self._seen == self.before + self.steps:
            self._profile.stop()
            self._profile = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile is None:
            return
        if kind is not None:
            self._profile.on_trace_ready = None
        self._profile.stop()  # writes what there is of the steps
        self._profile = None
        if kind is None and self._seen <= self.before:
            self._say(f"No trace: it starts after {self.before} steps, and {self._seen} were done.")

    def _write(self, recorded: profile) -> None:
        steps = min(self._seen - self.before, self.steps)
        if steps < 1:
            return
        temporary = unfinished(self.path)
        temporary = temporary.with_name(temporary.name + "".join(self.path.suffixes))  # PyTorch compresses by the name's end
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(temporary))
            self.activity = Activity.of(read_trace(temporary), steps)
            os.replace(temporary, self.path)
        except (OSError, ValueError) as e:
            self._say(f"The trace could not be written to {self.path}: {e}.")
            return
        self._say(f"Trace of {steps} step(s): {self.path} (open it at https://ui.perfetto.dev).\n{self.activity.table()}")
