"""Who is slow or wrong, from what all ranks have measured. Pure functions, so that they can be tested with planted numbers."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from m2i2.preflight.measures import GIB, Report

SLOW = 0.6
"""Share of the other ranks' median rate below which a rank is warned of."""
SLOW_DISK = 0.3
"""The same for the disk, whose rate varies more."""
TOO_SLOW = 0.2
"""Share below which a GPU's products or copies end the run, which would take five times as long with it. A rank on a CPU is only
warned of: on busy cores it may be as slow for a moment."""
OF_PEAK = 0.4
"""Share of a card's known peak below which its products are warned of; large products reach 0.6 to 0.9 of it."""
SKEW = 2.0
"""Seconds by which a clock may differ from rank 0's."""
LEAST_FREE, LEAST_SHARED = 5 * GIB, 1 * GIB

PEAKS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 products with float32 sums, 1e12 operations per second, from NVIDIA's data sheets; the first name that fits."""


@dataclass(frozen=True)
class Verdict:
    """One thing that was found."""

    kind: Literal["wrong", "too slow", "warning"]
    """``wrong``, ``too slow``: the run does not start."""
    rank: int
    host: str
    found: str
    remedy: str
    sure: bool = True
    """Whether the fault is certainly this host's."""

    @property
    def where(self) -> str:
        """The rank and its host."""
        return f"rank {self.rank} on {self.host}"


_LOOK = "See what else runs on the node (top, nvidia-smi) and what throttles it (nvidia-smi -q -d PERFORMANCE,TEMPERATURE)"
_RATES: dict[str, tuple[str, float, str, bool, str]] = {
    "products": ("matrix products", 1e9, "GFLOP/s", True, _LOOK),
    "memory": ("copies in memory", 1e9, "GB/s", True, _LOOK),
    "link": ("copies to the GPU", 1e9, "GB/s", True, "Check the card's PCIe link (nvidia-smi -q: GPU Link Info)"),
    "write": ("writing where the run writes", 1e6, "MB/s", False, "Check the node's network and its mount of that file system"),
    "read": ("reading where the run writes", 1e6, "MB/s", False, "Check the node's network and its mount of that file system"),
}
"""By field of a report: what people call it, its unit, whether it can end a run, what to do."""


def known_peak(device: str, half: bool) -> float:
    """What the card can do at most in half-precision products, FLOP/s; 0 where that is not known."""
    return next((1e12 * peak for name, peak in PEAKS.items() if half and name in device), 0.0)


def judge(reports: Sequence[Report], clocks: Mapping[int, float] | None = None, half: bool = False) -> list[Verdict]:
    """What is wrong, too slow or worth a warning. ``clocks``: seconds by which a rank's clock is ahead of rank 0's."""
    found = [
        Verdict("wrong", one.rank, one.host, problem, "Have the card, its memory and the node checked.")
        for one in reports
        for problem in one.wrong
    ]
    failed = [one for one in reports if one.unwritable]
    everywhere = len(failed) == sum(bool(one.unwritable) or one.write > 0 for one in reports)
    for one in failed:
        remedy = "Choose another --output." if everywhere else "Check the node's mount of that file system."
        found.append(Verdict("wrong", one.rank, one.host, f"it cannot write: {one.unwritable}", remedy, not everywhere))
    found += _other_bits(reports)
    for name in _RATES:
        found += _slow(reports, name)
    for one in reports:
        peak = known_peak(one.device, half)
        if peak and one.products < OF_PEAK * peak:
            share = f"{one.products / 1e12:.0f} TFLOP/s, {100 * one.products / peak:.0f} % of the {peak / 1e12:.0f} of {one.device}"
            found.append(Verdict("warning", one.rank, one.host, f"matrix products at {share}", f"{_LOOK}."))
        found += _room(one)
    for rank, ahead in (clocks or {}).items():
        if abs(ahead) > SKEW:
            text = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} rank 0's"
            host = next(one.host for one in reports if one.rank == rank)
            found.append(Verdict("warning", rank, host, text, "Start the node's time service (chronyc tracking, timedatectl)."))
    return found


def _other_bits(reports: Sequence[Report]) -> list[Verdict]:
    """Ranks whose products have other bits than those of most ranks with the same device and libraries."""
    found = []
    for device in dict.fromkeys(one.device for one in reports):
        alike = [one for one in reports if one.device == device]
        for name in alike[0].bits:
            counts = Counter(tuple(one.bits[name]) for one in alike)
            (usual, votes), *others = counts.most_common()
            if not others or (2 * votes <= len(alike) and any(one.wrong for one in alike)):  # it is known who is wrong
                continue
            sure = 2 * votes > len(alike)
            for one in alike:
                if sure and tuple(one.bits[name]) == usual:
                    continue
                text = (
                    f"{name} products have other bits than those of {votes if sure else 'the'} other rank(s) with the same device"
                )
                remedy = "Have the card and the node checked" + ("." if sure else "; which of these ranks is wrong is not known.")
                found.append(Verdict("wrong" if sure else "warning", one.rank, one.host, text, remedy, sure))
    return found


def _slow(reports: Sequence[Report], name: str) -> list[Verdict]:
    what, scale, unit, can_end, remedy = _RATES[name]
    measured = [one for one in reports if getattr(one, name) > 0]
    found = []
    for one in measured:
        others = [getattr(other, name) for other in measured if other is not one]
        if not others:
            continue
        rate, median = getattr(one, name), statistics.median(others)
        if rate < (SLOW if can_end else SLOW_DISK) * median:
            text = f"{what} at {rate / scale:.3g} {unit}, the other ranks' median is {median / scale:.3g}"
            ends = can_end and one.link > 0 and rate < TOO_SLOW * median
            kind: Literal["too slow", "warning"] = "too slow" if ends else "warning"
            found.append(Verdict(kind, one.rank, one.host, text, f"{remedy}, or leave the node out (--sbatch exclude={one.host})."))
    return found


def _room(one: Report) -> list[Verdict]:
    """Little room on the disk or in shared memory."""
    found = []
    if 0 <= one.free < LEAST_FREE:
        text = f"{one.free / GIB:.2f} GiB are free where the run writes"
        found.append(Verdict("warning", one.rank, one.host, text, "Make room, or choose another --output."))
    if 0 <= one.shared < LEAST_SHARED:
        text = f"/dev/shm has {one.shared / GIB:.2f} GiB free; loader processes may die with a bus error"
        found.append(Verdict("warning", one.rank, one.host, text, "docker run --shm-size=8g, or data.workers=0."))
    return found


def summary(reports: Sequence[Report], seconds: float, more: Sequence[str] = ()) -> str:
    """One line for people: what all ranks have measured, as the median and the range."""

    def shown(name: str) -> str:
        what, scale, unit, *_ = _RATES[name]
        rates = sorted(getattr(one, name) / scale for one in reports if getattr(one, name) > 0)
        if not rates:
            return ""
        between = f" ({rates[0]:.3g} to {rates[-1]:.3g})" if len(rates) > 1 else ""
        return f"{what} {statistics.median(rates):.3g} {unit}{between}"

    hosts = len({one.host for one in reports})
    rooms = []
    for name, where in (("free", "there"), ("shared", "in /dev/shm")):
        if known := [free for one in reports if (free := getattr(one, name)) >= 0]:
            rooms.append(f"{min(known) / GIB:.1f} GiB free {where}")
    parts = [text for text in (*map(shown, _RATES), *rooms, *more) if text]
    return f"Preflight of {len(reports)} rank(s) on {hosts} node(s) in {seconds:.1f} s: {', '.join(parts)}."
