"""``tools/plot_losses.py``: the curves of a run's log as a picture, and their first and last values as a table."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from m2i2.commands.guard import guarded
from m2i2.errors import M2I2Error

NAMES = ("mim", "mlm", "itm", "itc", "loss")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="plot_losses.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="PNG", help="where the picture goes (default: RUN/losses.png)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _plot(arguments.run, arguments.output or arguments.run / "losses.png"))


def read_log(run: Path) -> list[dict[str, float]]:
    """The rows of a run's log; M2I2Error where there is none."""
    try:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as e:
        raise M2I2Error(f"{run} has no readable log.jsonl ({e}); name a run's folder.") from e
    if not rows:
        raise M2I2Error(f"{run / 'log.jsonl'} is empty; the run has not logged a step yet.")
    return rows


def _plot(run: Path, output: Path) -> int:
    try:
        import matplotlib
    except ImportError as e:
        raise M2I2Error("matplotlib is not installed; pip install 'm2i2[plots]'.") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(run)
    names = [name for name in NAMES if name in rows[0]]
    names = names[:-1] if len(names) > 1 else names
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    print(f"| loss | step {rows[0]['step']} | highest | step {rows[-1]['step']} |\n|---|---|---|---|")
    for axis, name in zip(axes[0], names, strict=True):
        values = [row[name] for row in rows]
        axis.plot([row["step"] for row in rows], values)
        axis.set_title(name.upper())
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        print(f"| {name} | {values[0]:.3f} | {max(values):.3f} | {values[-1]:.3f} |")
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    print(f"written to {output}")
    return 0
