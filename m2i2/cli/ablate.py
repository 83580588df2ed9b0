"""``launchers/ablate.py``: train and evaluate every cell of a recipe, and write the report from their records."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2i2.errors import M2I2Error
from m2i2.exits import EXIT_FAULT, guarded
from m2i2.terminal import say

if TYPE_CHECKING:
    from m2i2.experiments.recipe import Recipe

DESCRIPTION = """Train and evaluate all cells of a recipe. A cell is one training run: a data set, a variant (full, no pretraining,
no MIM, ...) and a seed. The result of a cell is stored as a small JSON file in --results, its record, which can be committed:
a cell that has a record is not run again, on any machine. The report is written from the records alone.

A recipe with "cells" is a screening: it tests many changes for a short time, and the best of them for longer. Held-out data
decides (docs/ablations.md)."""

EXAMPLES = """examples:
  python launchers/ablate.py docs/recipes/small.json --data data --work runs/small --results docs/results/small --jobs 2
      all cells, two at a time on one thread each; to continue after an interruption, repeat the command
  python launchers/ablate.py docs/recipes/small.json --results docs/results/small --list
  python launchers/ablate.py docs/recipes/small.json --results docs/results/small --report
  python launchers/ablate.py docs/recipes/small.json --data data --work runs/small --results docs/results/small \\
      --only vqa-rad-full-seed-0
      one cell, and the pretraining that it needs
  python launchers/ablate.py docs/recipes/small.json --data data --work runs/small --results results/small --cluster lab.yaml
      each cell as a job of a SLURM array (docs/clusters.md); afterwards, --collect instead of --cluster writes records and report
  python launchers/ablate.py docs/recipes/match.json --data data --results results/match --pack pieces --piece-mb 60
      for a machine without a network: code, weights and shards in pieces, and run.sh, which runs the cells there
  python launchers/ablate.py screening.json --data data --work runs/screening --results results/screening --jobs 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where a cell failed, 75 where a signal stopped it."""
    parser = argparse.ArgumentParser(
        prog="ablate.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="a JSON file such as docs/recipes/small.json")
    add("--results", type=Path, required=True, metavar="DIR", help="folder of the records")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of the recipe's data sets (%(default)s)")
    add("--work", type=Path, metavar="DIR", help="folder for shards, runs and logs (default: runs/ablation-NAME)")
    add("--jobs", type=int, default=1, metavar="N", help="cells to run at the same time (%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="threads per cell (%(default)s)")
    add("--only", nargs="+", default=[], metavar="CELL", help="run only these cells")
    add("--cluster", type=Path, metavar="FILE", help="submit the cells to SLURM with the options in this file, and exit")
    add("--collect", action="store_true", help="record the cells that a cluster has finished, write the report, and exit")
    add("--pack", type=Path, metavar="DIR", help="write everything that another machine needs to DIR, and exit")
    add("--piece-mb", type=int, default=60, metavar="N", help="with --pack: size of a piece in megabytes (%(default)s)")
    add("--list", action="store_true", help="list the cells and which of them have a record, and exit")
    add("--report", action="store_true", help="write the report from the existing records, and exit")
    add("--output", type=Path, metavar="FILE", help="file of the report (default: README.md in --results)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _ablate(arguments))


def _ablate(arguments: argparse.Namespace) -> int:
    from m2i2.experiments.recipe import cells, read_recipe
    from m2i2.experiments.report import write_report
    from m2i2.experiments.running import prepare, record_path, run
    from m2i2.experiments.screening import is_screening

    if is_screening(arguments.recipe):
        return _screen(arguments)
    recipe = read_recipe(arguments.recipe)
    output = arguments.output or arguments.results / "README.md"
    if arguments.list:
        for cell in cells(recipe):
            state = "done" if record_path(arguments.results, cell).exists() else "missing"
            say(f"{state:<8} {cell.name}" + (f"  (after {cell.needs})" if cell.needs else ""))
        return 0
    failed: list[str] = []
    work: Path = (arguments.work or Path("runs") / f"ablation-{recipe.name}").resolve()
    if arguments.collect:
        from m2i2.experiments.sweeping import collect

        for name in collect(recipe, work, arguments.results):
            say(f"{name}: recorded")
    elif not arguments.report:
        work.mkdir(parents=True, exist_ok=True)
        prepare(recipe.prepare, arguments.data, work)
        if arguments.pack:
            return _pack(recipe.prepare, work, arguments)
        if arguments.cluster:
            return _submit(recipe, work, arguments)
        jobs = {"jobs": arguments.jobs, "threads": arguments.threads}
        failed = run(recipe, work, arguments.results, **jobs, only=arguments.only, tell=_tell)
    write_report(recipe, arguments.recipe, arguments.results, output)
    say(f"report written to {output}")
    if failed:
        say(f"{len(failed)} cells failed or wait for one that failed: {', '.join(failed)}")
    return EXIT_FAULT if failed else 0


def _screen(arguments: argparse.Namespace) -> int:
    from m2i2.experiments.running import prepare
    from m2i2.experiments.screening import going_on, read_screening, run_name
    from m2i2.experiments.screening_run import record_path, scores, screen, write_table

    screening = read_screening(arguments.recipe)
    if arguments.cluster or arguments.collect or arguments.only:
        raise M2I2Error(
            f"{arguments.recipe} is a screening, which takes no --cluster, --collect and --only; it runs on this machine."
        )
    if arguments.list:
        found = scores(screening, arguments.results)
        for stage in range(min(len(found) + 1, len(screening.epochs))):
            for cell in going_on(screening, found[:stage]):
                state = "done" if record_path(screening, arguments.results, cell, stage).exists() else "missing"
                say(f"{state:<8} {run_name(screening, cell, stage)}")
        return 0
    failed: list[str] = []
    if not arguments.report:
        work: Path = (arguments.work or Path("runs") / f"screening-{screening.name}").resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare(screening.prepare, arguments.data, work)
        if arguments.pack:
            return _pack(screening.prepare, work, arguments)
        failed = screen(screening, work, arguments.results, jobs=arguments.jobs, threads=arguments.threads, tell=_tell)
    output = arguments.output or arguments.results / "README.md"
    write_table(screening, arguments.results, output)
    say(f"table written to {output}")
    if failed:
        say(f"{len(failed)} runs failed and went no further: {', '.join(failed)}; remove their records to run them again")
    return EXIT_FAULT if failed else 0


def _pack(prepare: Sequence[str], work: Path, arguments: argparse.Namespace) -> int:
    from m2i2.experiments.packing import pack

    files = pack(arguments.recipe, prepare, work, arguments.results, arguments.pack, arguments.piece_mb)
    size = sum(path.stat().st_size for path in files) / 1e6
    say(f"{len(files)} files, {size:.0f} MB, written to {arguments.pack}. Copy them to one folder there, and start: bash run.sh")
    return 0


def _submit(recipe: "Recipe", work: Path, arguments: argparse.Namespace) -> int:
    from m2i2.cluster.options import ClusterOptions, read_cluster_file
    from m2i2.experiments.sweeping import submit
    from m2i2.options import from_dict

    options = from_dict(ClusterOptions, read_cluster_file(arguments.cluster))
    chain = submit(recipe, work, arguments.results, options, arguments.only)
    for submitted in chain:
        say(f"Job {submitted.job_id} ({submitted.name}: {len(submitted.tasks)} cells) is submitted; folder {submitted.folder}")
    if not chain:
        say("Nothing is left to do.")
        return 0
    say(f"  watch   squeue -j {','.join(submitted.job_id for submitted in chain)}")
    say("  then    the same command with --collect in the place of --cluster FILE", flush=True)
    return 0


def _tell(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
