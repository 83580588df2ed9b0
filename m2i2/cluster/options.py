"""What is asked of a SLURM cluster: one set of options, from a lab's YAML file and the command line."""

import argparse
import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from m2i2.config import require
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_bytes, write_text
from m2i2.options import from_dict, leaves, to_dict

_TIME = re.compile(
    r"(?:(?P<days>\d{1,9})-(?P<day_hours>\d{1,9})(?::(?P<day_minutes>\d{1,9})(?::(?P<day_seconds>\d{1,9}))?)?"
    r"|(?P<hours>\d{1,9}):(?P<hour_minutes>\d{1,9}):(?P<hour_seconds>\d{1,9})|(?P<minutes>\d{1,9})(?::(?P<seconds>\d{1,9}))?)"
)

_MOST_BYTES = 1 << 15
"""Of a file of options; deep YAML takes the square of its size."""


_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What a job asks for. Empty text and 0 leave a choice to the cluster, unless it says otherwise."""

    nodes: int = 1
    """Machines of a job."""
    gpus: int = 1
    """GPUs per node, one rank each; 0 = ranks on CPUs."""
    tasks: int = 0
    """Ranks per node; 0 = one per GPU, or one without GPUs."""
    cpus: int = 0
    """CPUs per rank: its own and its loader workers' (data.workers)."""
    memory: float = 0.0
    """Of a node, GB."""
    time: str = "4:00:00"
    """Time limit as SLURM writes it: minutes, hours:minutes:seconds, days-hours. A training run goes on after it, from its save."""
    partition: str = ""
    """Partition (queue) of the cluster."""
    account: str = ""
    """Account that the job is charged to."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Node features, such as a100|h100."""
    exclusive: bool = False
    """Whole nodes."""
    mail: str = ""
    """Address that SLURM writes to at the end and at a failure."""
    sbatch: tuple[str, ...] = ()
    """Further sbatch options, one each: name=value, or a name alone."""
    setup: tuple[str, ...] = ()
    """Shell lines that the job runs before it starts its ranks, such as: module load cuda. They make the file a script."""
    signal_delay: int = 300
    """Seconds before the time limit at which a training run saves and requeues: more than a step and a save take."""
    time_limits: int = 100
    """How often a job may reach its time limit and go on."""
    requeues: int = 3
    """How often in a row, without a new checkpoint, a run that lost a rank, hung or met a wrong node goes back to the queue."""
    no_preflight: bool = False
    """Start training runs without measuring their nodes first."""
    throttle: int = 0
    """Jobs of a sweep that run at the same time; 0 = all."""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "mail"):
            require_word(name, getattr(self, name))
        for line in self.sbatch:
            sbatch_option(line)
        require(self.nodes >= 1, f"nodes={self.nodes} must be at least 1.")
        for name in ("gpus", "tasks", "cpus", "memory", "time_limits", "requeues", "throttle"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        require(self.signal_delay >= 1, f"signal_delay={self.signal_delay} must be at least 1 second.")
        if self.gpus and self.tasks not in (0, self.gpus):
            raise M2I2Error(f"tasks={self.tasks} with gpus={self.gpus}: a node has one rank per GPU; leave --tasks out.")
        require(
            self.signal_delay < 60 * minutes(self.time),
            f"signal_delay={self.signal_delay} seconds before a time limit of {self.time} is before the start; "
            f"lower --signal-delay or raise --time.",
        )

    @property
    def ranks_per_node(self) -> int:
        """Processes on each node."""
        return self.gpus or self.tasks or 1

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.ranks_per_node

    def alone(self) -> "ClusterOptions":
        """The same for a job of one process, such as an evaluation."""
        return replace(self, nodes=1, gpus=min(1, self.gpus), tasks=0)


def require_word(what: str, text: str) -> None:
    """M2I2Error for what would be more than a word of one line of an sbatch script; empty text is none."""
    if text and (not text.isprintable() or " " in text or text.startswith("-")):
        raise M2I2Error(f"{what}={shown(text)} is not a single word: spaces, line ends and a leading - are not taken.")


def require_name(text: str) -> None:
    """M2I2Error for a text that cannot be the name of a job and of its folder."""
    if not text or not text.isprintable() or len(text) > 200 or text[0] in "-." or set(text) & set("/%"):
        raise M2I2Error(
            f"{shown(text)} is not a valid name of a job: it is one line of up to 200 characters, without / and %, and starts with "
            f"neither - nor a dot."
        )


def sbatch_option(line: str) -> tuple[str, str | bool]:
    """A further sbatch option and its value, True for one that has none; M2I2Error for what is not one option on one line."""
    key, separator, value = line.removeprefix("#SBATCH").strip().removeprefix("--").partition("=")
    if not _OPTION.fullmatch(key) or (value and not value.isprintable()):
        raise M2I2Error(f"sbatch={shown(line)} is not an sbatch option; write name=value, or a name alone, on one line.")
    return key, value if separator else True


def minutes(text: str) -> int:
    """A time limit as SLURM writes it (see `sbatch --time`) in minutes, rounded up."""
    found = _TIME.fullmatch(text)
    if not found:
        raise M2I2Error(f"time={text!r} is not a time limit; write minutes, hours:minutes:seconds or days-hours, such as 4:00:00.")
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    hours = part["days"] * 24 + part["day_hours"] + part["hours"]
    seconds = part["day_seconds"] + part["hour_seconds"] + part["seconds"]
    total = hours * 60 + part["day_minutes"] + part["hour_minutes"] + part["minutes"] + -(-seconds // 60)
    require(total > 0, f"time={text!r} must be more than zero.")
    return total


def read_cluster_file(path: Path) -> dict[str, Any]:
    """Cluster options from a YAML file, as given; every value is text (YAML would read 4:00:00 as a number)."""
    try:
        values = yaml.load(read_bytes(path, _MOST_BYTES).decode("utf-8"), Loader=yaml.BaseLoader)
    except M2I2Error:
        raise
    except OSError as e:
        raise M2I2Error(f"Cannot read the cluster options {path}: {e.strerror}.") from e
    except RecursionError as e:
        raise M2I2Error(f"The cluster options {path} are nested too deeply; they are lines of name: value.") from e
    except (yaml.YAMLError, ValueError, OverflowError) as e:  # no UTF-8, or the number of no character
        raise M2I2Error(f"The cluster options {path} are not valid YAML: {e}.") from e
    if not isinstance(values, dict):
        raise M2I2Error(f"The cluster options {path} must be lines of name: value.")
    return values


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """One option for every field of `ClusterOptions`; those not given are None."""
    group = parser.add_argument_group("cluster options")
    group.add_argument("--cluster", type=Path, metavar="FILE", help="YAML file of the options below (default: $M2I2_CLUSTER)")
    defaults = ClusterOptions()
    for name, kind, text in leaves(ClusterOptions):
        flag, default = f"--{name.replace('_', '-')}", getattr(defaults, name)
        text = f"{text.rstrip('.')} ({default})" if default and kind is not bool else text
        if kind is bool:
            group.add_argument(flag, action="store_const", const="true", help=text)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, action="append", metavar="LINE", help=f"{text} May be repeated.")
        else:
            group.add_argument(flag, metavar="N" if kind in (int, float) else "TEXT", help=text)


def cluster_options(arguments: argparse.Namespace, file: Path | None) -> ClusterOptions:
    """The options of the YAML ``file``, where there is one, with those of the command line in their places."""
    values = read_cluster_file(file) if file else {}
    given = {name: getattr(arguments, name) for name, _, _ in leaves(ClusterOptions)}
    values.update({name: value for name, value in given.items() if value is not None})
    for name, kind, _ in leaves(ClusterOptions):
        if typing.get_origin(kind) is tuple and isinstance(values.get(name), str):
            values[name] = values[name].splitlines()
    return from_dict(ClusterOptions, values)


def cluster_options_of(file: Path) -> ClusterOptions:
    """The options that `write_cluster_file` wrote."""
    return from_dict(ClusterOptions, read_cluster_file(file))


def write_cluster_file(options: ClusterOptions, path: Path) -> None:
    """Every option, as `read_cluster_file` reads it."""
    write_text(path, yaml.safe_dump(to_dict(options), sort_keys=False))
