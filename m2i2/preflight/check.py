"""The preflight: all ranks measure, rank 0 judges, everybody learns the outcome."""

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from m2i2.errors import M2I2Error
from m2i2.excluded import EXCLUDED, exclude_host, excluded_hosts, same_host
from m2i2.precision import HALF
from m2i2.preflight.collectives import Exchange, at_fault, clock_skews, exchange
from m2i2.preflight.judgement import Verdict, judge, summary
from m2i2.preflight.measures import Report, device_name, measure_disk, measure_memory, measure_products, sizes_of
from m2i2.training.processes import Process

PATIENCE = timedelta(seconds=float(os.environ.get("M2I2_PREFLIGHT_SECONDS", "120")))
"""How long the ranks wait for one that does not come to the end of its own measures."""
_MISSING = re.compile(r"Ranks? ([\d, ]+) failed to pass")


@dataclass
class Outcome:
    """The same on every rank."""

    reports: list[Report]
    verdicts: list[Verdict] = field(default_factory=list)
    text: str = ""

    @property
    def refused(self) -> list[Verdict]:
        """What keeps a run from starting."""
        return [one for one in self.verdicts if one.kind != "warning"]


def examine_ranks(process: Process, dtype: torch.dtype, folder: Path) -> Outcome:
    """Measure all ranks. ``dtype``: of the run's products; ``folder``: where the run writes. Collective.

    M2I2Error where a rank does not come back from its measures in `PATIENCE`, which names it, its host and excludes that host.
    """
    began = time.monotonic()
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    host = socket.gethostname()
    hosts: list[str] = _gathered(host, process, group)
    report = Report(process.rank, host, device_name(process.device))
    _measure(report, process, dtype, folder, first_of_node=hosts.index(host) == process.rank)
    report.seconds = time.monotonic() - began
    _meet(group, hosts, process, folder)
    seen = exchange(process.device, process.rank, process.ranks) if process.ranks > 1 else Exchange()
    skews = clock_skews(group, process.ranks) if process.ranks > 1 else {}
    both: list[tuple[Report, Exchange]] = _gathered((report, seen), process, group)
    reports = [one for one, _ in both]
    outcome = Outcome(reports, judge(reports, skews, dtype in HALF) + _wrong_exchange([one for _, one in both], hosts))
    more = []
    if process.ranks > 1:
        slowest = max(one.seconds for _, one in both)
        more = [f"a sum of {seen.bytes / 1e6:.0f} MB over all ranks {1e3 * slowest:.3g} ms"]
        more.append(f"clocks within {1e3 * (max(skews.values()) - min(skews.values())):.0f} ms")
    outcome.text = summary(reports, time.monotonic() - began, more)
    dist.destroy_process_group(group)
    return outcome


def _gathered(value: Any, process: Process, group: Any) -> list[Any]:
    found: list[Any] = [None] * process.ranks
    dist.all_gather_object(found, value, group)
    return found


def _measure(report: Report, process: Process, dtype: torch.dtype, folder: Path, *, first_of_node: bool) -> None:
    """This rank's own measures; the disk is measured once on each node."""
    device = process.device
    random = torch.random.get_rng_state()
    with torch.inference_mode():
        measure_products(report, device, dtype, sizes_of(device))
        measure_memory(report, device, sizes_of(device))
    torch.random.set_rng_state(random)
    if device.type == "cuda":  # what was taken here is none of the run's memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if first_of_node:
        try:
            measure_disk(report, folder)
        except OSError as e:
            report.unwritable = f"{e.strerror} in {folder}"


def _meet(group: Any, hosts: Sequence[str], process: Process, folder: Path) -> None:
    """Wait for all ranks; those that do not come are named."""
    try:
        dist.monitored_barrier(group, PATIENCE, wait_all_ranks=True)
    except RuntimeError as e:
        missing = [int(number) for names in _MISSING.findall(str(e)) for number in names.split(",") if number.strip()]
        if process.rank or not missing:
            raise
        named = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in missing)
        for rank in missing:
            _exclude(folder, hosts[rank], "did not come back from the preflight")
        raise M2I2Error(
            f"Preflight: {named} did not come back from its measures in {PATIENCE.total_seconds():.0f} s, and is now in "
            f"{folder / EXCLUDED}. Check the node (dmesg, nvidia-smi), or leave it out: --sbatch exclude={hosts[missing[0]]}."
        ) from e


def _wrong_exchange(seen: Sequence[Exchange], hosts: Sequence[str]) -> list[Verdict]:
    ranks, what = at_fault(dict(enumerate(seen)))
    remedy = "Check the node's network card, cables and links (NCCL_DEBUG=INFO, ibstat)."
    named = [(rank, hosts[rank]) for rank in ranks if rank >= 0] or ([(0, "an unknown node")] if ranks else [])
    return [Verdict("wrong", rank, host, what, remedy, ranks != [-1]) for rank, host in named]


def _exclude(folder: Path, host: str, why: str) -> None:
    try:
        exclude_host(folder, host, why)
    except OSError as e:
        raise M2I2Error(f"Cannot write {host} to {folder / EXCLUDED}: {e.strerror}. Leave that host out by hand.") from e


def preflight(process: Process, dtype: torch.dtype, folder: Path) -> None:
    """Examine all ranks before a run in ``folder`` starts, say what was found, and refuse a wrong or far too slow one. Collective.

    M2I2Error on every rank where a result is wrong, where a rank is slower than the bound of the judgement, or where a host takes
    part that the run's list excludes. Hosts that are surely at fault are added to that list.
    """
    _refuse_excluded(process, folder)
    outcome = examine_ranks(process, dtype, folder)
    process.say(outcome.text)
    for one in outcome.verdicts:
        process.say(f"Preflight: {one.kind}: {one.where}: {one.found}. {one.remedy}")
    if not (refused := outcome.refused):
        return
    excluded = list(dict.fromkeys(one.host for one in refused if one.sure))
    if process.first:
        for host in excluded:
            _exclude(folder, host, next(f"preflight: {one.found}" for one in refused if one.host == host))
    dist.barrier()  # a rank that ends may take the others with it before they have said why
    found = " ".join(f"{one.where}: {one.kind}: {one.found}. {one.remedy}" for one in refused[:8])
    after = f" {', '.join(excluded)} is now in {folder / EXCLUDED}; SLURM jobs of this run leave it out." if excluded else ""
    raise M2I2Error(f"Preflight: {found}{after}")


def _refuse_excluded(process: Process, folder: Path) -> None:
    """M2I2Error where a rank is on a host that the run's list excludes. Collective."""
    mine = [host for host in excluded_hosts(folder) if same_host(host, socket.gethostname())]
    everyones: list[Any] = [None] * process.ranks
    dist.all_gather_object(everyones, mine)
    if found := sorted({host for hosts in everyones for host in hosts}):
        raise M2I2Error(
            f"Preflight: {', '.join(found)} takes part in this start, but {folder / EXCLUDED} excludes it. Start without it; if "
            f"it was repaired, remove its line from that file."
        )
