"""A golden run: twenty optimizer steps without an engine, and the record of what came out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.golden import cases
from tests.golden.adapter import CPU, Session

Record = dict[str, Any]
"""``losses``: each step's by name; ``student``, ``teacher``, ``queue``: each tensor's sum, norm and product with its probe."""


def run(case: cases.Case, rank: int, ranks: int, together: int = 1, device: torch.device = CPU) -> Record:
    """The record of a run on this rank; losses are means over micro-batches and ranks.

    ``together``: micro-batches that the rank's rows are cut into, with losses over all of them.
    """
    session = Session(case, rank, ranks, device)
    trained = {name: p for name, p in session.student.named_parameters() if p.requires_grad}
    history: list[dict[str, float]] = []
    for step in range(cases.STEPS):
        session.begin_step(step)
        sums: dict[str, Tensor] = {}
        for micro in range(case.accumulation):
            if together == 1:
                losses = session.losses(cases.micro_batch(case, step, micro, rank, ranks), step, micro)
            else:  # the rows of so many ranks
                numbers = range(rank * together, (rank + 1) * together)
                seen = [cases.micro_batch(case, step, micro, number, ranks * together) for number in numbers]
                losses = session.losses_together(seen, step)
            (losses["loss"] / case.accumulation).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach() / case.accumulation
        for name, parameter in trained.items():
            assert parameter.grad is not None, f"{name} has no gradient"
            _average(parameter.grad, ranks)
        session.optimizer.step()
        session.optimizer.zero_grad()
        session.end_step()
        history.append({name: float(_average(value, ranks)) for name, value in sorted(sums.items())})
    measured = {part: {name: measure(name, t) for name, t in tensors.items()} for part, tensors in session.state().items()}
    return {"losses": history, **measured}


def run_several(rank: int, ranks: int, names: Sequence[str]) -> dict[str, Record]:
    """The records of several cases, one after the other in the same processes."""
    torch.set_num_threads(1)
    return {name: run(cases.CASES[name], rank, ranks) for name in names}


def run_together(rank: int, ranks: int) -> Record:
    """The record of pretraining, each rank's rows cut into two micro-batches with losses over both."""
    torch.set_num_threads(1)
    return run(cases.CASES["pretraining"], rank, ranks, together=2)


def measure(name: str, tensor: Tensor) -> list[float]:
    """Sum, norm and product with a fixed vector: what a tensor is recorded as."""
    values = tensor.detach().double().flatten().cpu()
    return [float(values.sum()), float(values.norm()), float(values @ cases.probe(name, len(values)))]


def _average(x: Tensor, ranks: int) -> Tensor:
    """``x``, averaged over the ranks in place."""
    if ranks > 1:
        dist.all_reduce(x)
        x /= ranks
    return x


def differences(found: Record, recorded: Record) -> list[tuple[float, str]]:
    """(difference relative to max(1, |recorded|), where), the largest first; a name that only one side has is infinite."""
    rows: list[tuple[float, str]] = []

    def compare(ours: Any, theirs: Any, where: str) -> None:
        if isinstance(theirs, dict):
            for key in sorted({*ours, *theirs}):
                if key in ours and key in theirs:
                    compare(ours[key], theirs[key], f"{where} {key}")
                else:
                    rows.append((float("inf"), f"{where} {key} ({'not recorded' if key in ours else 'gone'})"))
        elif isinstance(theirs, list):
            if len(ours) != len(theirs):
                rows.append((float("inf"), f"{where} (length {len(ours)}, recorded {len(theirs)})"))
            for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
                compare(one, other, f"{where} [{number}]")
        else:
            difference = abs(ours - theirs) / max(1.0, abs(theirs))
            rows.append((difference if difference == difference else float("inf"), where))

    compare(found, recorded, "")
    return sorted(((difference, where.strip()) for difference, where in rows), reverse=True)
