"""``tools/plot_losses.py``: loss curves as a picture, of one run or of several over one another, and a table of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2 import markdown
from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.files import read_rows
from m2i2.terminal import say
from m2i2.training.display import losses_of


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="plot_losses.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs; several are drawn over one another")
    parser.add_argument("--output", type=Path, metavar="PNG", help="where the picture goes (default: losses.png in the first run)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _plot(arguments.runs, arguments.output or arguments.runs[0] / "losses.png"))


def read_log(run: Path) -> list[dict[str, float]]:
    """The rows of a run's log; M2I2Error where there is none."""
    try:
        rows = read_rows(run / "log.jsonl")
    except (OSError, ValueError) as e:
        raise M2I2Error(f"{run} has no readable log.jsonl ({e}); name a run's folder.") from e
    if not rows:
        raise M2I2Error(f"{run / 'log.jsonl'} is empty; the run has not logged a step yet.")
    return rows


def _plot(runs: Sequence[Path], output: Path) -> int:
    try:
        import matplotlib
    except ImportError as e:
        raise M2I2Error("matplotlib is not installed; pip install '.[plots]'.") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {run.name: read_log(run) for run in runs}
    first = next(iter(logs.values()))
    names = losses_of(first[0])
    names = names[1:] if len(names) > 1 else names  # the sum only where it is all there is
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    several = len(logs) > 1
    heads = ["loss", *(["run"] if several else []), f"step {first[0]['step']}", "highest", f"step {first[-1]['step']}"]
    heads += ["farthest from the first run"] if several else []
    say("\n".join(markdown.head(heads)))
    for axis, name in zip(axes[0], names, strict=True):
        expected = {row["step"]: row[name] for row in first}
        for run, rows in logs.items():
            values = [row[name] for row in rows]
            axis.plot([row["step"] for row in rows], values, label=run, alpha=0.8)
            cells = [name, *([run] if several else []), *(f"{value:.3f}" for value in (values[0], max(values), values[-1]))]
            if several:
                both = [abs(row[name] - expected[row["step"]]) for row in rows if row["step"] in expected]
                cells.append(f"{max(both):.2g}" if both else "-")
            say(markdown.row(cells))
        axis.set_title(name.upper())
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    if several:
        axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    say(f"written to {output}")
    return 0
