"""``tools/plan.py``: does a pretraining run fit, what crosses the network, and where does it stop scaling."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.markdown import head, row
from m2i2.options import override
from m2i2.presets import PRESETS, preset
from m2i2.terminal import say

if TYPE_CHECKING:
    from m2i2.performance.plan import Plan
    from m2i2.performance.records import Record

EXAMPLES = """examples:
  python tools/plan.py --gpus 64 --gpu-memory 40 --batch 2048
  python tools/plan.py --measured docs/results/speed.csv --row 1 --gpus 64 --preset tiny
  python tools/plan.py --gpus 4096 --batch 65536 --tflops 120 --gigabytes-per-s 25 objectives.queue=262144

The batch per GPU stays the same in the table of 1 to 4,096 GPUs. --tflops (what a GPU sustains) and --gigabytes-per-s (what it
sends over its slowest link) are yours to measure. --measured takes the former, and the batch per GPU and the length of the captions
where they are not given, from a row that tools/benchmark.py pretrain --record FILE has written. The network is a model always."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 where the run does not fit."""
    parser = argparse.ArgumentParser(
        prog="plan.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="section.key=value", help="settings to change")
    add("--preset", choices=list(PRESETS), default="paper", help="model and objectives (%(default)s)")
    add("--gpus", type=int, default=8, help="number of GPUs (%(default)s)")
    add("--gpu-memory", type=float, default=40, metavar="GB", help="memory of one, 10^9 bytes (%(default)s)")
    add("--batch", type=int, help="global batch (default: per GPU as measured, or the preset's)")
    add("--tokens", type=int, help="length of the captions (default: as measured, or 25)")
    add("--tflops", type=float, help="10^12 operations per second that one sustains (default: as measured, or 100)")
    add("--gigabytes-per-s", type=float, default=20, help="10^9 bytes per second that one sends (%(default)s)")
    add("--offload", action="store_true", help="moments in the CPU's memory (ds_configs/zero2_offload.json)")
    add(
        "--overlap",
        action="store_true",
        help="assume that everything is sent while GPUs compute (default: one waits for the other)",
    )
    add("--measured", type=Path, metavar="FILE", help="take a measured row of this file in place of --tflops")
    add("--row", type=int, metavar="N", help="which row, counted from 1 (default: the newest that fits --card and --what)")
    add("--card", default="", metavar="TEXT", help="part of the card's name")
    add("--what", default="", metavar="TEXT", help="part of what was measured, such as bfloat16")
    return guarded(lambda: _plan(parser.parse_args(argv)))


def _plan(arguments: argparse.Namespace) -> int:
    from m2i2.performance.plan import Machine, plan

    measured = _measured(arguments)
    config = override(preset(arguments.preset)[0], arguments.settings)
    gpus, accumulation = arguments.gpus, config.training.accumulation
    batch = arguments.batch or gpus * _batch_per_gpu(measured, config.training.batch)
    if gpus < 1 or batch % (gpus * accumulation):
        raise M2I2Error(f"--batch {batch} does not divide by {gpus} GPUs x accumulation {accumulation}.")
    if config.training.precision == "float16" and arguments.offload:
        raise M2I2Error("training.precision=float16 needs a loss scale, which offloading does not have; leave out one of them.")
    rows = batch // gpus // accumulation
    tflops = arguments.tflops or (measured.number("tflops") if measured else 100)
    tokens = arguments.tokens or (int(measured.number("tokens")) if measured else 25)
    machine = Machine(1e12 * tflops, 1e9 * arguments.gigabytes_per_s)
    ways = {"offload": arguments.offload, "overlap": arguments.overlap}
    of = lambda count: plan(config, count, machine, rows=rows, tokens=tokens, **ways)  # noqa: E731
    _show_one(of(gpus), rows, batch)
    _show_assumptions(arguments, measured, tflops)
    counts = {*(4**k for k in range(7)), gpus}
    _show_table([of(count) for count in sorted(counts)], rows * accumulation)
    needed = sum(of(gpus).memory.values()) / 1e9
    if needed > arguments.gpu_memory:
        raise M2I2Error(
            f"{needed:.1f} GB per GPU are needed, not {arguments.gpu_memory:g}: lower --batch, raise training.accumulation, try "
            f"--offload, or use training.checkpoint_activations=true."
        )
    return 0


def _measured(arguments: argparse.Namespace) -> "Record | None":
    """The row that was asked for."""
    if arguments.measured is None:
        if arguments.row is not None or arguments.card or arguments.what:
            raise M2I2Error("--row, --card and --what choose a row of --measured FILE; name the file.")
        return None
    if arguments.tflops is not None:
        raise M2I2Error("--tflops and --measured both say what a GPU sustains; give one of them.")

    from m2i2.performance.records import find, read

    return find(read(arguments.measured), row=arguments.row, card=arguments.card, what=arguments.what)


def _batch_per_gpu(measured: "Record | None", default: int) -> int:
    return int(measured.number("batch")) // measured.ranks if measured else default


def _show_one(mine: "Plan", rows: int, batch: int) -> None:
    say(f"{mine.gpus} GPU(s), {rows} pairs each at once, {batch} per step:")
    parts = {"memory of a GPU": mine.memory, "memory of the CPU for a GPU": mine.host, "sent by a GPU per step": mine.wire}
    for title, rows_of in parts.items():
        if not rows_of:
            continue
        say(f"{title}: {sum(rows_of.values()) / 1e9:.3f} GB")
        for name, count in rows_of.items():
            say(f"  {name:<44}{count / 1e9:9.3f}")


def _show_assumptions(arguments: argparse.Namespace, measured: "Record | None", tflops: float) -> None:
    """Where the figures of the table come from."""
    if measured:
        say(
            f"Compute: {tflops:g} TFLOP/s per GPU, measured on {measured.date} on {measured.card} ({measured.what}, preset "
            f"{measured.preset}, batch {measured.batch}, {measured.tokens} tokens: {measured.pairs_per_s} pairs/s)."
        )
        if measured.preset != arguments.preset:
            say(f"Caution: the row was measured with preset {measured.preset}, the plan is of {arguments.preset}.")
    else:
        say(f"Compute: {tflops:g} TFLOP/s per GPU, assumed (--tflops), not measured.")
    network = f"Network: {arguments.gigabytes_per_s:g} GB/s per GPU, assumed (--gigabytes-per-s), not measured."
    if arguments.overlap:
        say(
            f"{network} Overlap is assumed to be complete: a step takes the longer of computing and sending. This is the best case."
        )
    else:
        say(f"{network} No overlap is assumed: a step computes, then sends.")


def _show_table(plans: "Sequence[Plan]", batch_per_gpu: int) -> None:
    say("\n".join(head(["GPUs", "memory, GB", "sent, GB", "compute, s", "network, s", "pairs/s", "efficiency"])))
    for one in plans:
        memory, sent = (f"{sum(parts.values()) / 1e9:.2f}" for parts in (one.memory, one.wire))
        seconds = (f"{one.compute_s:.4g}", f"{one.network_s:.4g}")
        rate = f"{batch_per_gpu * one.gpus / one.seconds:.4g}"
        say(row([str(one.gpus), memory, sent, *seconds, rate, f"{one.efficiency:.0%}"]))
