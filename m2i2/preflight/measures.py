"""What one rank measures of its device and its node, in a few seconds.

Products are measured three ways. Whole numbers have a known answer, whatever the order of the sums. Products of drawn numbers
must have the same bits each time, and on every rank with the same device and libraries.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.distributed import checksum
from m2i2.files import WRITING

GIB = 1 << 30


@dataclass
class Report:
    """What a rank found. Rates are bytes or floating-point operations per second; 0 where something was not measured."""

    rank: int
    host: str
    device: str
    """Device and libraries: ranks where this is the same compute the same bits."""
    wrong: list[str] = field(default_factory=list)
    """Results that differ from the known answer, or from themselves."""
    bits: dict[str, list[int]] = field(default_factory=dict)
    """Checksums of products of drawn numbers, by data type."""
    products: float = 0.0
    memory: float = 0.0
    link: float = 0.0
    """From the host to the GPU."""
    write: float = 0.0
    read: float = 0.0
    unwritable: str = ""
    """Why nothing can be written where the run writes."""
    free: float = -1.0
    """Bytes free where the run writes; -1 on ranks that did not look."""
    shared: float = -1.0
    """Bytes free in /dev/shm; -1 where there is none, or the rank did not look."""
    seconds: float = 0.0


class Sizes(NamedTuple):
    """How much work the measures are."""

    rows: int
    inner: int
    columns: int
    repeats: int
    copied: int
    """Bytes."""
    large: int
    """Rows, width and columns of the product whose rate counts; 0: that of the others."""


CPU = Sizes(256, 1024, 256, 16, 32 << 20, 0)
GPU = Sizes(4096, 1024, 4096, 8, 1 << 30, 8192)
DISK = 16 << 20
"""Bytes that are written and read back."""


def sizes_of(device: torch.device) -> Sizes:
    """Those for the kind of a device."""
    return GPU if device.type == "cuda" else CPU


def device_name(device: torch.device) -> str:
    """The device with everything that decides which kernel computes a product."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}"
    name = "CPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}"


def product(x: Tensor, y: Tensor) -> Tensor:
    """The product that is measured, on the device."""
    return x @ y


def measure_products(report: Report, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> None:
    """Known answers, repeated bits and the rate; ``dtype`` is that of the run's products."""
    for kind in dict.fromkeys((torch.float32, dtype)):
        name = str(kind).removeprefix("torch.")
        if problem := _known_answer(device, kind, sizes):
            report.wrong.append(f"{name} products of whole numbers: {problem}")
        bits, seconds, different = _repeated(device, kind, sizes)
        if different:
            report.wrong.append(f"{name} products: {different} of {sizes.repeats - 1} repetitions gave other bits than the first")
        report.bits[name] = bits
        report.products = 2.0 * sizes.rows * sizes.inner * sizes.columns / seconds
    if sizes.large:
        x = torch.ones(sizes.large, sizes.large, device=device, dtype=dtype)
        seconds = _best(lambda: product(x, x), device, 5, 10)
        report.products = 2.0 * sizes.large**3 / seconds


def _known_answer(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> str:
    """What is wrong with a product of whole numbers; empty where nothing is.

    Every partial sum is exact: below 2^24 of 11-bit and 3-bit numbers, which TF32 holds, or, in half precision, at most 256.
    The check is Freivalds': C x = A (B x) for a vector x, in whole numbers on the host (Freivalds, 1977).
    """
    generator = torch.Generator().manual_seed(20)
    half = dtype != torch.float32
    inner, most, other = (256, 1, 1) if half else (sizes.inner, 1023, 7)
    a = torch.randint(-most, most + 1, (sizes.rows, inner), generator=generator)
    b = torch.randint(-other, other + 1, (inner, sizes.columns), generator=generator)
    found = product(a.to(device, dtype), b.to(device, dtype)).cpu().double()
    if not bool(found.isfinite().all()):
        return f"{int((~found.isfinite()).sum())} results are not finite"
    x = torch.randint(1, 1 << 16, (sizes.columns,), generator=generator)
    wrong = (found.long() @ x != a @ (b @ x)) | (found != found.round()).any(1)
    count = int(wrong.sum())
    return f"{count} of {sizes.rows} rows are wrong (the first is row {int(wrong.nonzero()[0])})" if count else ""


def _repeated(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> tuple[list[int], float, int]:
    """(checksum, seconds of the fastest, how many differ from the first) of the same product again and again."""
    generator = torch.Generator().manual_seed(21)
    x, y = (torch.randn(*shape, generator=generator) for shape in ((sizes.rows, sizes.inner), (sizes.inner, sizes.columns)))
    x, y = x.to(device, dtype), y.to(device, dtype)
    first, fastest, different = product(x, y), float("inf"), 0
    bits = checksum([first])
    for _ in range(sizes.repeats - 1):
        _wait(device)
        began = time.perf_counter()
        again = product(x, y)
        _wait(device)
        fastest = min(fastest, time.perf_counter() - began)
        different += not torch.equal(checksum([again]), bits)
    return bits.tolist(), fastest, different


def measure_memory(report: Report, device: torch.device, sizes: Sizes) -> None:
    """Copies within the device's memory and, to a GPU, from the host's."""
    source = torch.zeros(sizes.copied // 4, device=device)
    target = torch.empty_like(source)
    report.memory = 2 * sizes.copied / _best(lambda: target.copy_(source), device, 6, 1)
    if device.type == "cuda":
        host = torch.zeros(sizes.copied // 16, pin_memory=True)
        report.link = host.numel() * 4 / _best(lambda: target[: len(host)].copy_(host, non_blocking=True), device, 4, 1)


def measure_disk(report: Report, folder: Path) -> None:
    """Write a file where the run writes, read it back past the cache, compare. OSError as of writing."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    path = place / f".preflight.{report.rank}.{os.getpid()}{WRITING}"
    content = os.urandom(DISK)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        began = time.perf_counter()
        for start in range(0, DISK, 1 << 20):
            os.write(handle, content[start : start + (1 << 20)])
        os.fsync(handle)
        report.write = DISK / (time.perf_counter() - began)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        began = time.perf_counter()
        back = b"".join(iter(lambda: os.read(handle, 1 << 20), b""))
        report.read = DISK / (time.perf_counter() - began)
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)
    if back != content:
        report.wrong.append(f"a file that was written to {place} reads differently")
    report.free = float(shutil.disk_usage(place).free)
    if Path("/dev/shm").is_dir():
        report.shared = float(shutil.disk_usage("/dev/shm").free)


def _best(work: Callable[[], object], device: torch.device, times: int, launches: int) -> float:
    """Seconds of one ``work`` in the fastest of ``times`` rounds, after one that does not count."""
    fastest = float("inf")
    for number in range(times + 1):
        _wait(device)
        began = time.perf_counter()
        for _ in range(launches):
            work()
        _wait(device)
        if number:
            fastest = min(fastest, (time.perf_counter() - began) / launches)
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
