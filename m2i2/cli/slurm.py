"""``launchers/slurm.py``: runs on a SLURM cluster, through submitit; single ones, pipelines and sweeps of them."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Run pretraining, finetuning and evaluation on a SLURM cluster, one rank per GPU (--gpus 0: on CPUs).

What stands before "--" is for the cluster, what stands after it for the launcher of the same name. A training run that is
preempted, requeued or at its time limit saves, goes back to the queue and resumes by itself."""

EXAMPLES = """examples:
  python launchers/slurm.py pretrain --nodes 4 --gpus 8 --cpus 12 --memory 400 --time 24:00:00 --partition gpu \\
      -- --deepspeed_config ds_configs/zero2.json --preset paper --shards shards/rocov2 --output runs/rocov2
  python launchers/slurm.py evaluate --cluster lab.yaml --follow -- --checkpoint runs/rad --shards shards/vqa_rad
  python launchers/slurm.py pipeline --cluster lab.yaml --output runs/study --questions shards/vqa_rad shards/slake \\
      --pretrain "--preset paper --shards shards/rocov2" --finetune "--preset paper"
  python launchers/slurm.py sweep finetune --cluster lab.yaml --output runs/seeds --grid training.seed 0 1 2 3 --throttle 2 \\
      --evaluate "--shards shards/vqa_rad" -- --preset paper --checkpoint runs/rocov2 --shards shards/vqa_rad
  python launchers/slurm.py collect runs/seeds
  python launchers/slurm.py pretrain -- --help      the launcher's own options and settings

exit codes: 0 done or submitted; 2 a mistake of the user's, with a message. With --follow also: 124 ended at the time limit,
130 cancelled (or no longer followed), 137 out of memory, 1 a rank's fault, with its traceback, else the failed job's own."""

CLUSTER_FILE = "M2I2_CLUSTER"
"""Environment variable that names the cluster options where --cluster does not."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments, unknown = parser().parse_known_args(words[:cut])
    return guarded(lambda: _refuse(words[:cut], unknown) if unknown else _run(arguments, words[cut + 1 :]))


def _refuse(words: Sequence[str], unknown: Sequence[str]) -> int:
    """Options that are not for the cluster: they belong behind "--", or, of a pipeline, into its own options."""
    at = words.index(unknown[0])
    if words[0] == "pipeline":
        remedy = 'Options of a pipeline\'s launchers stand in quotes: --pretrain, --finetune, --evaluate "OPTIONS".'
    else:
        meant = shlex.join([*words[:at], "--", *words[at:]])
        remedy = f'Options of the launcher stand behind "--": python launchers/slurm.py {meant}'
    raise M2I2Error(f"slurm.py has no option {unknown[0]!r} of the cluster. {remedy}")


def parser() -> argparse.ArgumentParser:
    """The command line up to "--"."""
    from m2i2.cluster.options import add_cluster_options

    made = argparse.ArgumentParser(
        prog="slurm.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def submitting(name: str, text: str) -> argparse.ArgumentParser:
        added = command(name, text)
        add = added.add_argument
        add("--jobs", type=Path, default=Path("runs") / "jobs", metavar="DIR", help="where job folders are made (%(default)s)")
        add("--after", default="", metavar="DEPENDENCY", help="start when other jobs are done, such as afterok:12")
        add("--follow", action="store_true", help="print rank 0's log and what happens to the job; end with its exit code")
        add("--dry-run", action="store_true", help="print the sbatch script instead of submitting it")
        return added

    for stage in ("pretrain", "finetune", "evaluate"):
        one = submitting(stage, f"one run of launchers/{stage}.py; its options stand after --")
        one.add_argument("--name", default=stage, help="of the job and its folder (%(default)s)")
        add_cluster_options(one)

    pipeline = submitting("pipeline", "pretraining, then finetuning and evaluation on each question data set, in a chain of jobs")
    add = pipeline.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of all its runs: pretrain, and one per data set")
    add("--questions", nargs="+", required=True, metavar="DIR", help="question shards to finetune and evaluate on")
    add("--pretrain", metavar="OPTIONS", help="options of launchers/pretrain.py, in quotes")
    add("--checkpoint", default="", metavar="RUN", help="a pretraining run that is there already, instead of --pretrain")
    add("--finetune", default="", metavar="OPTIONS", help="options of launchers/finetune.py, in quotes")
    add("--evaluate", default="", metavar="OPTIONS", help="options of launchers/evaluate.py, in quotes")
    add_cluster_options(pipeline)

    sweep = submitting("sweep", "one run for every combination of some settings, as a job array, and one table of them")
    add = sweep.add_argument
    add("stage", choices=["pretrain", "finetune"], help="whose options stand after --")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of all its runs, one each")
    add(
        "--grid",
        action="append",
        nargs="+",
        required=True,
        metavar=("SETTING", "VALUE"),
        help="a setting and its values, such as training.seed 0 1 2; repeat it for every setting",
    )
    add("--evaluate", metavar="OPTIONS", help="evaluate each run too: options of launchers/evaluate.py, in quotes")
    add_cluster_options(sweep)

    again = command("follow", "follow a job that was submitted before")
    again.add_argument("folder", type=Path, help="its job folder")
    table = command("collect", "the table of a pipeline or sweep: printed, and written as table.md and table.csv")
    table.add_argument("folder", type=Path, help="its --output")
    return made


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from m2i2.cluster.following import follow
    from m2i2.cluster.submission import read_record

    if arguments.command == "collect":
        return _collect(arguments.folder)
    if arguments.command == "follow":
        return follow(read_record(arguments.folder))
    if arguments.command in ("pipeline", "sweep"):
        return _study(arguments, words)
    return _single(arguments, words)


def _single(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from m2i2.cluster.following import follow
    from m2i2.cluster.options import cluster_options
    from m2i2.cluster.submission import Task, checked, request, sbatch_script, submit

    task = Task(arguments.name, arguments.command, tuple(words))
    options = cluster_options(arguments, _cluster_file(arguments))
    if arguments.dry_run:
        checked(task, request([task], options))
        say(sbatch_script(arguments.jobs / f"{task.name}-DATE", task.name, [task], options, arguments.after))
        return 0
    submitted = submit(arguments.jobs, task.name, [task], options, arguments.after)
    say(f"Job {submitted.job_id} ({task.name}, {submitted.ranks} rank(s)) is submitted.")
    say(f"  folder  {submitted.folder}")
    say(f"  watch   squeue -j {submitted.job_id}; tail -F {submitted.log()}")
    say(f"  follow  python launchers/slurm.py follow {submitted.folder}")
    say(f"  cancel  scancel {submitted.job_id}")
    say(f"  resume  sh {submitted.folder / 'resume.sh'}", flush=True)
    return follow(submitted) if arguments.follow else 0


def _study(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from m2i2.cluster import plans
    from m2i2.cluster.following import follow
    from m2i2.cluster.options import cluster_options
    from m2i2.cluster.study import chain_scripts, submit_chain, write_study

    options = cluster_options(arguments, _cluster_file(arguments))
    if arguments.command == "pipeline":
        if words:
            raise M2I2Error("A pipeline's launcher options stand in --pretrain, --finetune and --evaluate, not after --.")
        if (arguments.pretrain is None) == (not arguments.checkpoint):
            raise M2I2Error("Give either --pretrain OPTIONS or the --checkpoint of a pretraining run.")
        stages, members = plans.pipeline(
            arguments.output,
            arguments.questions,
            None if arguments.pretrain is None else shlex.split(arguments.pretrain),
            shlex.split(arguments.finetune),
            shlex.split(arguments.evaluate),
            arguments.checkpoint,
        )
    else:
        evaluate = None if arguments.evaluate is None else shlex.split(arguments.evaluate)
        stages, members = plans.sweep(arguments.output, arguments.stage, words, _axes(arguments.grid), evaluate)
    if arguments.dry_run:
        say(chain_scripts(stages, options, arguments.jobs, arguments.after))
        return 0
    chain = submit_chain(stages, options, arguments.jobs, arguments.after)
    write_study(arguments.output, members, chain)
    for submitted in chain:
        what = ", ".join(task.name for task in submitted.tasks)
        say(f"Job {submitted.job_id} ({submitted.name}: {what}) is submitted; folder {submitted.folder}")
    numbers = ",".join(submitted.job_id for submitted in chain)
    say(f"  watch   squeue -j {numbers}")
    say(f"  cancel  scancel {numbers.replace(',', ' ')}")
    say(f"  table   python launchers/slurm.py collect {arguments.output}", flush=True)
    if not arguments.follow:
        return 0
    codes = [follow(submitted) for submitted in chain]
    _collect(arguments.output)
    return next((code for code in codes if code), 0)


def _axes(given: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for key, *values in given:
        if not values or key in axes:
            raise M2I2Error(f"--grid {key} needs values, and one --grid only: --grid {key} VALUE VALUE ...")
        axes[key] = values
    return axes


def _collect(folder: Path) -> int:
    from m2i2.cluster.study import as_markdown, collect, write_table

    rows = collect(folder)
    write_table(folder, rows)
    say(as_markdown(rows))
    say(f"written to {folder / 'table.md'} and {folder / 'table.csv'}.")
    return 0


def _cluster_file(arguments: argparse.Namespace) -> Path | None:
    if arguments.cluster:
        return Path(arguments.cluster)
    named = os.environ.get(CLUSTER_FILE)
    return Path(named) if named else None


if __name__ == "__main__":
    raise SystemExit(main())
