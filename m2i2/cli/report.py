"""``tools/report.py``: runs and evaluations as one HTML file that needs nothing else."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Make one HTML file out of runs and evaluations: curves, reconstructions of masked images, examples of retrieval,
scores with intervals, confusion by question type, right and wrong answers with Grad-CAM overlays, settings and versions.
The file holds its images and opens without a network."""

EXAMPLES = """examples:
  python tools/report.py runs/rad
  python tools/report.py runs/small runs/rad --output report.html
  python tools/report.py runs/demo/pretrain runs/demo/finetune --output runs/demo/report.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of evaluations (results.json)")
    add("--output", type=Path, metavar="HTML", help="where the report goes (default: report.html in the first RUN)")
    add("--shards", type=Path, metavar="DIR", help="where the questions' shards are, if they were moved after the evaluation")
    add("--examples", type=int, default=6, metavar="N", help="right and wrong answers to show, N each (%(default)s)")
    add("--no-gradcam", action="store_true", help="leave out the overlays, which need the model")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> int:
    from m2i2.errors import M2I2Error
    from m2i2.files import write_text
    from m2i2.reporting.page import render
    from m2i2.reporting.records import read_run

    if arguments.examples < 0:
        raise M2I2Error(f"--examples {arguments.examples} must not be negative.")
    runs = [read_run(folder) for folder in arguments.runs]
    page = render(runs, examples=arguments.examples, shards=arguments.shards, explain=not arguments.no_gradcam)
    output = arguments.output or arguments.runs[0] / "report.html"
    try:
        write_text(output, page)
    except OSError as e:
        raise M2I2Error(f"Cannot write {output}: {e.strerror}. Name another place with --output.") from e
    say(f"written to {output} ({len(page) / 1e6:.1f} MB)")
    return 0
