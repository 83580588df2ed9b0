"""What takes all ranks together: a sum and a gathering with known results, their time, and the ranks' clocks."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from m2i2.distributed import all_gather

_ROUNDS = 3
_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Of 8 bytes each, in the sum that is timed."""


@dataclass
class Exchange:
    """What a rank saw of the collectives."""

    seconds: float = 0.0
    """Of the fastest sum."""
    bytes: int = 0
    wrong_sum: bool = False
    wrong_pieces: list[int] = field(default_factory=list)
    """Ranks whose piece arrived otherwise than it was sent."""


def exchange(device: torch.device, rank: int, ranks: int) -> Exchange:
    """Sum and gather whole numbers that every rank knows. Collective."""
    numbers = _NUMBERS.get(device.type, 1 << 18)
    base = torch.randint(0, 1 << 30, (numbers,), generator=torch.Generator().manual_seed(22)).to(device)
    expected, fastest, wrong = base * (ranks * (ranks + 1) // 2), float("inf"), False
    for _ in range(_ROUNDS):
        mine = base * (rank + 1)
        _settle(device)
        began = time.perf_counter()
        dist.all_reduce(mine)
        _settle(device)
        fastest = min(fastest, time.perf_counter() - began)
        wrong = wrong or not torch.equal(mine, expected)
    piece = base[:4096]
    pieces = all_gather(piece * (rank + 1)).view(ranks, -1)
    bad = [sender for sender in range(ranks) if not torch.equal(pieces[sender], piece * (sender + 1))]
    return Exchange(fastest, 8 * numbers, wrong, bad)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def at_fault(seen: dict[int, Exchange]) -> tuple[list[int], str]:
    """(ranks, what) of a wrong exchange: a sender whose piece is wrong at most receivers, a receiver that alone sees wrong ones.

    No rank where everything is right; -1 where it cannot be told whose fault it is.
    """
    ranks = len(seen)
    if not any(one.wrong_sum or one.wrong_pieces for one in seen.values()):
        return [], ""
    senders = [r for r in seen if sum(r in one.wrong_pieces for one in seen.values()) > ranks / 2]
    if senders:
        return senders, "what it sends arrives otherwise at the other ranks"
    receivers = [r for r, one in seen.items() if one.wrong_sum or one.wrong_pieces]
    if len(receivers) < ranks / 2:
        return receivers, "what arrives here is wrong, and right at the other ranks"
    return [-1], "the sum over all ranks is wrong"


def clock_skews(group: Any, ranks: int) -> dict[int, float]:
    """By rank, the seconds by which its clock is ahead of rank 0's; as exact as a barrier, some milliseconds. Collective."""
    rounds = []
    for _ in range(_ROUNDS):
        dist.barrier(group)
        times: list[Any] = [None] * ranks
        dist.all_gather_object(times, time.time(), group)
        rounds.append(times)
    return {rank: statistics.median(times[rank] - times[0] for times in rounds) for rank in range(ranks)}
