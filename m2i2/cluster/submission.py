"""Submitting: a job folder with everything to know about it, and sbatch through submitit."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from m2i2.cluster.control import require_job_id
from m2i2.cluster.jobs import RankJob
from m2i2.cluster.options import ClusterOptions, minutes, require_name, sbatch_option, write_cluster_file
from m2i2.cluster.stages import STAGES, command_line
from m2i2.cluster.start import result_path
from m2i2.errors import M2I2Error, shown
from m2i2.excluded import excluded_hosts
from m2i2.files import read_object, write_json, write_text
from m2i2.options import to_dict
from m2i2.ownership import PRIVATE
from m2i2.presets import for_ranks
from m2i2.provenance import provenance

RECORD = "job.json"
_AFTER = re.compile(r"(singleton|after[a-z]*(:[0-9A-Z_+]+)+)([,?](singleton|after[a-z]*(:[0-9A-Z_+]+)+))*")
_MOST_RANKS = 1 << 16
# A signal that comes before Python can handle it is ignored: until then there is nothing to save.
_PYTHON = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor, that can also write a script where there is no SLURM."""

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m m2i2.cluster.start {shlex.quote(str(self.folder))} && code=0 || code=$?"

    def script(self, jobs: int) -> str:
        """The sbatch script of one job, or of an array of them."""
        if jobs > 1:
            self.parameters["map_count"] = jobs
        return self._make_submission_file_text(self._submitit_command_str, "")


@dataclass(frozen=True)
class Task:
    """One launcher's run among the jobs of a folder."""

    name: str
    stage: str
    words: tuple[str, ...]
    """The launcher's own options."""


@dataclass(frozen=True)
class Submitted:
    """Jobs of a folder: one, or the members of an array."""

    folder: Path
    """Logs, pickles and the record lie there."""
    name: str
    tasks: tuple[Task, ...]
    job_ids: tuple[str, ...]
    """One a task; those of an array are ARRAY_0, ARRAY_1 ..."""
    ranks: int

    @property
    def job_id(self) -> str:
        """The number that squeue, scancel and --dependency take for all of them."""
        return self.job_ids[0].split("_")[0]

    def log(self, member: int = 0, rank: int = 0) -> Path:
        """What a rank printed, both streams."""
        return Path(JobPaths(self.folder, self.job_ids[member], rank).stdout)

    def result(self, member: int, rank: int) -> Path:
        """Where a rank writes how it ended."""
        return result_path(self.folder, self.job_ids[member], rank)


def _executor(folder: Path, name: str, options: ClusterOptions, after: str, excluded: Sequence[str] = ()) -> _SlurmExecutor:
    require_name(name)
    if not str(folder).isprintable():
        raise M2I2Error(f"The job folder {shown(str(folder))} has a name of several lines; name another place with --jobs.")
    if after and not _AFTER.fullmatch(after):
        raise M2I2Error(f"{shown(after)} is not a dependency of SLURM, such as afterok:12 or afterany:12:13.")
    executor = _SlurmExecutor(folder, max_num_timeout=options.time_limits, python=_PYTHON)
    more: dict[str, Any] = {"requeue": True}
    for line in options.sbatch:
        key, value = sbatch_option(line)
        more[key.replace("-", "_")] = value
    if excluded:
        more["exclude"] = ",".join([*([str(more["exclude"])] if "exclude" in more else []), *excluded])
    if after:
        more.update({"dependency": after, "kill_on_invalid_dep": "yes"})
    # srun no longer takes it from sbatch (SLURM 22.05)
    cpus = [f"--cpus-per-task={options.cpus}"] if options.cpus else []
    asked: dict[str, Any] = {
        "job_name": name,
        "nodes": options.nodes,
        "ntasks_per_node": options.ranks_per_node,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "exclusive": options.exclusive,
        "mail_user": options.mail,
        "mail_type": "END,FAIL" if options.mail else "",
        "setup": list(options.setup),
        "teardown": after_the_ranks(folder),
    }
    executor.update_parameters(
        **{key: value for key, value in asked.items() if value},
        time=minutes(options.time),
        signal_delay_s=options.signal_delay,
        stderr_to_stdout=True,
        # a rank that fails ends the others, which may wait for it in a collective
        srun_args=["--kill-on-bad-exit=1", *cpus],
        wckey=None,  # submitit's own is refused where such keys are enforced
        additional_parameters=more,
    )
    if options.memory:
        executor.update_parameters(mem=f"{round(options.memory * 1024)}M")
    if options.throttle:
        executor.update_parameters(array_parallelism=options.throttle)
    return executor


def after_the_ranks(folder: Path) -> list[str]:
    """The batch script's lines after the ranks have ended, with their exit code in ``$code``: see `m2i2.cluster.aftermath`."""
    call = f"{shlex.quote(sys.executable)} -m m2i2.cluster.aftermath {shlex.quote(str(folder))} $code $SECONDS"
    return [f"""if [ "$code" != 0 ]; then trap "" TERM; {call}; fi""", 'exit "$code"']


def run_of(task: Task) -> Path:
    """The folder of the run that a task trains, from where it was submitted."""
    _, arguments = command_line(task.stage).parse(task.words)
    output: Path = arguments.output
    return output


def request(tasks: Sequence[Task], options: ClusterOptions) -> ClusterOptions:
    """What is asked of the cluster for these tasks, which are of one stage."""
    return options.alone() if tasks[0].stage == "evaluate" else options


def sbatch_script(folder: Path, name: str, tasks: Sequence[Task], options: ClusterOptions, after: str = "") -> str:
    """The script that `submit` would hand to sbatch."""
    return _executor(folder, name, request(tasks, options), after, _excluded(tasks)).script(len(tasks))


def _excluded(tasks: Sequence[Task]) -> list[str]:
    """The hosts that the tasks' runs must not use again."""
    runs = [run_of(task) for task in tasks if task.stage != "evaluate"]
    return list(dict.fromkeys(host for run in runs for host in excluded_hosts(run)))


def new_job_folder(parent: Path, name: str) -> Path:
    """A folder of its own for every submission, for its user alone: job numbers may repeat, and pickles run what they say."""
    require_name(name)
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1000):
        folder = parent / (f"{stem}-{number}" if number else stem)
        try:
            folder.mkdir(parents=True, mode=PRIVATE)
            return folder.resolve()
        except FileExistsError:
            continue
        except OSError as e:
            raise M2I2Error(f"Cannot make the job folder {folder}: {e.strerror}. Name another place with --jobs.") from e
    raise M2I2Error(f"There are a thousand job folders {stem} in {parent}.")


def checked(task: Task, options: ClusterOptions) -> dict[str, Any]:
    """The resolved settings of a task. What its launcher would refuse is refused now, not after the wait in the queue."""
    module = command_line(task.stage)
    if task.stage == "evaluate":
        return {name: str(value) for name, value in vars(module.parse(task.words)).items()}
    settings, _ = module.parse(task.words)
    from m2i2.data.loading.sampling import Share

    training = for_ranks(settings, options.ranks).training
    Share(training.batch, training.accumulation, 0, options.ranks)
    return to_dict(settings)


def submit(jobs: Path, name: str, tasks: Sequence[Task], options: ClusterOptions, after: str = "") -> Submitted:
    """Submit ``tasks`` as one job, or as an array where they are several; M2I2Error with sbatch's reason where it refuses.

    ``jobs``: where its job folder is made, on a file system that the nodes share. ``after``: a SLURM dependency, such as
    afterok:12. Every job starts in the present working folder. Evaluations take one rank whatever ``options`` say.
    """
    options = request(tasks, options)
    settings = [checked(task, options) for task in tasks]
    if not shutil.which("sbatch"):
        raise M2I2Error("There is no sbatch on this machine; submit from a login node of the cluster, or use --dry-run.")
    here = str(Path.cwd())
    folder = new_job_folder(jobs, name)
    executor = _executor(folder, name, options, after, _excluded(tasks))
    try:
        with executor.batch():
            measured = tasks[0].stage != "evaluate" and not options.no_preflight
            handles = [executor.submit(RankJob(task.stage, task.words, here, options.gpus, measured)) for task in tasks]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as e:
        shutil.rmtree(folder)
        output = getattr(e, "stderr", None) or getattr(e, "output", None) or str(e)
        raise M2I2Error(f"sbatch refused the job: {_reason(output)} The request is {_asked(options)}.") from e
    submitted = Submitted(folder, name, tuple(tasks), tuple(handle.job_id for handle in handles), options.ranks)
    write_cluster_file(options, folder / "cluster.yaml")
    record = {
        **asdict(submitted),
        "folder": str(folder),
        "working_folder": here,
        "after": after,
        "settings": settings,
        **provenance(),
    }
    write_json(folder / RECORD, record)
    for member, task in enumerate(tasks):
        script = folder / (f"resume-{member}.sh" if len(tasks) > 1 else "resume.sh")
        write_text(script, f"#!/bin/sh\n{resume_command(task, folder)}\n")
        script.chmod(0o755)
    return submitted


def resume_command(task: Task, folder: Path) -> str:
    """The command that submits a task again; the run goes on from its newest checkpoint."""
    words = [sys.executable, "-m", "m2i2.cli.slurm", task.stage, "--cluster", str(folder / "cluster.yaml")]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*words, '--name', task.name, '--', *task.words])}"


def read_record(folder: Path) -> Submitted:
    """What was submitted into a job folder."""
    path = folder / RECORD
    record = read_object(path, "record of a job", " Name a job folder, as printed when the job was submitted.")
    try:
        tasks = tuple(_task(row) for row in record["tasks"])
        job_ids, ranks = tuple(map(require_job_id, record["job_ids"])), int(record["ranks"])
        require_name(record["name"])
        if not 0 < len(job_ids) == len(tasks) or not 0 < ranks <= _MOST_RANKS:
            raise ValueError(f"it has {len(job_ids)} job numbers, {len(tasks)} tasks and {ranks} ranks")
        return Submitted(folder.resolve(), record["name"], tasks, job_ids, ranks)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise M2I2Error(f"{path} is not a record of a job ({type(e).__name__}: {e}).") from e


def _task(row: Any) -> Task:
    """A task as it was recorded."""
    words = (row["name"], row["stage"], *row["words"])
    if row["stage"] not in STAGES or not all(isinstance(word, str) for word in words) or not row["name"].isprintable():
        raise ValueError(f"{shown(row)} is not a task")
    return Task(row["name"], row["stage"], tuple(row["words"]))


def _reason(output: str) -> str:
    """sbatch's own words, out of what submitit makes of them."""
    lines = [line.split("error:", 1)[-1].strip() for line in output.splitlines() if "sbatch:" in line and "error:" in line]
    return " ".join(line.rstrip(".") + "." for line in lines) or " ".join(output.split())


def _asked(options: ClusterOptions) -> str:
    what = f"{options.nodes} node(s) with {options.ranks_per_node} rank(s), {options.gpus} GPU(s)"
    what += f", {options.ranks_per_node * (options.cpus or 1)} CPU(s)"
    what += f" and {options.memory:g} GB" if options.memory else ""
    return f"{what} each, for {options.time}" + (f", in the partition {options.partition}" if options.partition else "")
