"""Clocks and yardsticks: the machine's ceiling, repeated timings, peak memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

_SHAPES = ((4096, 1024, 4096), (2048, 4096, 1024), (2048, 768, 3072))
"""Rows, width in, width out of the matrix products that the ceiling is measured with: large, and those of ViT-B's MLP."""


class Ceiling:
    """The best matrix-product rate of this process's threads, in FLOP/s: of `F.linear` in one dtype.

    Sampled again and again between the steps of a measurement, so that both see the same machine.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.samples = device, list[float]()
        draw = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
        self._products: list[tuple[Tensor, Tensor, Tensor]] = [
            (draw(rows, inner), draw(outer, inner), draw(outer)) for rows, inner, outer in _SHAPES
        ]

    def sample(self) -> None:
        """Measure each shape three times and keep the best rate."""
        best = 0.0
        with torch.inference_mode():
            for x, weight, bias in self._products:
                for _ in range(3):
                    seconds = timed(lambda: F.linear(x, weight, bias), self.device)  # noqa: B023
                    best = max(best, 2 * x.numel() * len(weight) / seconds)
        self.samples.append(best)

    @property
    def flops(self) -> float:
        """The median of the samples, FLOP/s."""
        return statistics.median(self.samples)


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


def peak_rss_gb(*, children: bool = False) -> float:
    """Largest resident memory of this process so far (or of the largest of its ended children), in 10^9 bytes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def peak_memory_mb() -> float:
    """Largest resident memory so far, 10^6 bytes. Unlike getrusage's, it does not begin with the parent process's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
