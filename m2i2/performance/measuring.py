"""Clocks and yardsticks: the machine's ceiling, repeated timings, peak memory."""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

_SHAPES = ((4096, 1024, 4096), (2048, 4096, 1024), (2048, 768, 3072))
"""On a CPU. Rows, width in, width out of the matrix products that the ceiling is measured with: large, and those of ViT-B's MLP."""
_GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192))
"""On a GPU: smaller products do not fill a large card."""
_LAUNCHES = 30
"""Products per measurement on a GPU: one alone would measure the launch and an idle clock with it."""


class Ceiling:
    """The best matrix-product rate of this process, in FLOP/s: of `F.linear` in one dtype.

    On a CPU it is sampled again and again between the steps of a measurement, so that both see the same machine. On a GPU it is
    sampled when it is first asked for, after the measurement: the large products would count as the measurement's memory.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, shapes: Sequence[tuple[int, int, int]] | None = None) -> None:
        """``shapes``: rows, width in, width out of each product; default: those of the device's kind."""
        self.dtype, self.device, self.samples = dtype, device, list[float]()
        self._gpu = device.type == "cuda"
        self._shapes = shapes or (_GPU_SHAPES if self._gpu else _SHAPES)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def between_steps(self) -> None:
        """On a CPU, measure once; on a GPU, nothing."""
        if not self._gpu:
            self.sample()

    def sample(self) -> None:
        """Measure each shape and keep the best rate: on a CPU of three calls, on a GPU of the medians of many."""
        with torch.inference_mode():
            if self._gpu:
                self.samples.append(max(self._rate_of_many(*shape) for shape in self._shapes))
            else:
                self._kept = self._kept or [self._draw(*shape) for shape in self._shapes]
                self.samples.append(max(self._best_of_three(*product) for product in self._kept))

    def _draw(self, rows: int, inner: int, outer: int) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = (torch.randn(*shape, device=self.device) for shape in ((rows, inner), (outer, inner), (outer,)))
        return x.to(self.dtype), weight.to(self.dtype), bias.to(self.dtype)

    def _best_of_three(self, x: Tensor, weight: Tensor, bias: Tensor) -> float:
        seconds = min(timed(lambda: F.linear(x, weight, bias), self.device) for _ in range(3))
        return 2 * x.numel() * len(weight) / seconds

    def _rate_of_many(self, rows: int, inner: int, outer: int) -> float:
        x, weight, _ = self._draw(rows, inner, outer)
        return 2 * rows * inner * outer / seconds_per_launch(lambda: F.linear(x, weight), _LAUNCHES)

    @property
    def flops(self) -> float:
        """The median of the samples, FLOP/s."""
        while self._gpu and len(self.samples) < 3:
            self.sample()
        return statistics.median(self.samples)


def seconds_per_launch(work: Callable[[], object], launches: int, measurements: int = 5) -> float:
    """Seconds of the device per call of ``work``: CUDA events around ``launches`` calls, the median of some measurements."""
    found = []
    for number in range(measurements + 1):  # the first one wakes the clock up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(launches):
            work()
        end.record()
        end.synchronize()
        if number:
            found.append(start.elapsed_time(end) / 1e3 / launches)
    return statistics.median(found)


def timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that ``work`` takes, the device's queue emptied on both sides."""
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class StepClock:
    """Seconds of successive steps.

    On a CPU each step is timed by itself, without what it waited for its batch. On a GPU steps follow each other as in a run,
    without waiting for the device: events on its stream mark their ends, and `seconds` waits for the last one.
    """

    def __init__(self, device: torch.device, warm_up: int) -> None:
        """``warm_up``: steps at the beginning that do not count."""
        self._device, self._warm_up = device, warm_up
        self._ends: list[torch.cuda.Event] = []
        self._seconds: list[float] = []

    def step(self, work: Callable[[], float]) -> None:
        """Do a step; ``work`` returns the seconds that it waited for its batch."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            waited = work()
            self._seconds.append(time.perf_counter() - start - waited)
            return
        if not self._ends:
            self._mark()
        work()
        self._mark()

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._ends.append(event)

    @property
    def seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        if self._ends:
            self._ends[-1].synchronize()
            self._seconds = [one.elapsed_time(other) / 1e3 for one, other in itertools.pairwise(self._ends)]
        return self._seconds[self._warm_up :]

    @property
    def median(self) -> float:
        """The median step, seconds."""
        return statistics.median(self.seconds)


@dataclass
class Rounds:
    """Timings of the same work, the first ``warm_up`` left out."""

    warm_up: int
    seconds: list[float] = field(default_factory=list)
    _left: int = 0

    def add(self, seconds: float) -> None:
        """A timing."""
        self._left += 1
        if self._left > self.warm_up:
            self.seconds.append(seconds)

    @property
    def median(self) -> float:
        """The median timing, seconds."""
        return statistics.median(self.seconds)


def peak_memory_gb(device: torch.device) -> dict[str, float]:
    """The most memory so far, 10^9 bytes: the host's resident memory of this process, and of a GPU what PyTorch took.

    ``device_reserved_gb`` is what its allocator holds, private pools of CUDA graphs included; ``device_allocated_gb`` what tensors
    filled of it. The CUDA context and the buffers of NCCL are in neither.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"host_peak_rss_gb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9}
    if device.type == "cuda":
        found["device_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
        found["device_allocated_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def peak_memory_mb() -> float:
    """Largest resident memory so far, 10^6 bytes. Unlike getrusage's, it does not begin with the parent process's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
