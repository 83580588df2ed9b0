"""``tools/gpu_report.sh``: fill the table of a GPU's targets by itself."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Measure training, ranking, data and start-up on this machine's GPU, each within a limit, and print one table of
what was measured and what is asked for at least. A line that fails says why and does not stop the others. Nothing is downloaded.

Written into the folder: report.md, report.csv, report.json, speed.csv (rows for docs/results/speed.csv), traces/, logs/."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 also where lines failed."""
    parser = argparse.ArgumentParser(
        prog="gpu_report.sh", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path(os.environ.get("OUT") or "runs/gpu-report"), help="folder (default: $OUT, %(default)s)")
    add("--quick", action="store_true", help="try the script: tiny models, one or two steps; on a CPU too")
    add("--minutes", type=float, default=10, help="for everything together (%(default)s)")
    add("--only", nargs="+", metavar="JOB", help="only these measurements, and what they need")
    add("--list", action="store_true", help="name the measurements")
    return guarded(lambda: _report(parser.parse_args(argv)))


def _report(arguments: argparse.Namespace) -> int:
    from m2i2.performance.gpu_jobs import jobs
    from m2i2.performance.gpu_report import Place, make_report, table

    known = {job.name: job for job in jobs()}
    if arguments.list:
        say("\n".join(known))
        return 0
    wanted = arguments.only or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise M2I2Error(f"There is no measurement {unknown[0]!r}; they are {', '.join(known)}.")
    for name in wanted:  # grows while it is read
        if known[name].needs and known[name].needs not in wanted:
            wanted.append(known[name].needs)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    place = Place(output, arguments.quick)
    rows = make_report([job for job in known.values() if job.name in wanted], place, 60 * arguments.minutes)
    say(f"\n{table(rows, place)}\n\nWritten to {output}.")
    return 0
