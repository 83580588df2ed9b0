"""``tools/plan.py``: does a pretraining run fit, what crosses the network, and where does it stop scaling."""

import argparse
from collections.abc import Sequence

from m2i2.config import PRESETS, preset
from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.options import override

EXAMPLES = """examples:
  python tools/plan.py --gpus 64 --gpu-memory 40 --batch 2048
  python tools/plan.py --gpus 4096 --batch 65536 --tflops 120 --gigabytes-per-s 25 objectives.queue=262144

The batch stays the same a GPU in the table of 1 to 4,096 GPUs. Nothing here was measured on GPUs: --tflops (what a GPU
sustains) and --gigabytes-per-s (what it sends over its slowest link) are yours to measure (tools/benchmark.py)."""


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
    add("--batch", type=int, help="global batch (default: the preset's a GPU)")
    add("--tokens", type=int, default=25, help="length of the captions (%(default)s)")
    add("--tflops", type=float, default=100, help="10^12 operations a second that one sustains (%(default)s)")
    add("--gigabytes-per-s", type=float, default=20, help="10^9 bytes a second that one sends (%(default)s)")
    return guarded(lambda: _plan(parser.parse_args(argv)))


def _plan(arguments: argparse.Namespace) -> int:
    from m2i2.performance.plan import Machine, plan

    config = override(preset(arguments.preset)[0], arguments.settings)
    gpus = arguments.gpus
    batch = arguments.batch or config.training.batch * gpus
    if gpus < 1 or batch % (gpus * config.training.accumulation):
        raise M2I2Error(f"--batch {batch} does not divide by {gpus} GPUs x accumulation {config.training.accumulation}.")
    rows = batch // gpus // config.training.accumulation
    machine = Machine(1e12 * arguments.tflops, 1e9 * arguments.gigabytes_per_s)

    def of(count: int) -> "Plan":  # type: ignore[name-defined]  # noqa: F821
        return plan(config, count, machine, rows=rows, tokens=arguments.tokens)

    mine = of(gpus)
    needed = sum(mine.memory.values()) / 1e9
    print(f"{gpus} GPU(s), {rows} pairs each at once, {batch} a step:")
    for title, rows_of in (("memory of a GPU", mine.memory), ("sent by a GPU in a step", mine.wire)):
        print(f"{title}: {sum(rows_of.values()) / 1e9:.3f} GB")
        for name, count in rows_of.items():
            print(f"  {name:<24}{count / 1e9:9.3f}")
    print("| GPUs | memory, GB | sent, GB | compute, s | network, s | pairs/s | efficiency |\n|---|---|---|---|---|---|---|")
    for count in sorted({*(4**k for k in range(7)), gpus}):
        one = of(count)
        rate = rows * config.training.accumulation * count / one.seconds
        print(
            f"| {count} | {sum(one.memory.values()) / 1e9:.2f} | {sum(one.wire.values()) / 1e9:.2f} | {one.compute_s:.4f} | "
            f"{one.network_s:.4f} | {rate:.0f} | {one.efficiency:.0%} |"
        )
    if needed > arguments.gpu_memory:
        raise M2I2Error(
            f"{needed:.1f} GB a GPU are needed, {arguments.gpu_memory:g} are there: lower --batch, raise training.accumulation, or "
            f"use training.checkpoint_activations=true (which this plan does not count)."
        )
    return 0
