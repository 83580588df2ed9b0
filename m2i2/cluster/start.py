"""What srun starts on every rank: submitit runs the job's pickle, and how it ended is written down as JSON.

submitit hands a job over as a pickle, which runs whatever it says. It is read here alone, and only from a folder that belongs
to the user and in which nobody else may write. What the submitter reads back is JSON of this module's own.
"""

import json
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

from m2i2.errors import M2I2Error
from m2i2.exits import EXIT_USER_ERROR, report
from m2i2.files import parse_json, read_tail, write_text
from m2i2.ownership import require_own_folder

_LONGEST = 100_000
"""Characters of a traceback that are kept: its end."""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended; without a kind, it has left nothing."""

    kind: str = ""
    """success, or the name of an error's class."""
    message: str = ""
    traceback: str = ""

    @property
    def error(self) -> bool:
        """Whether it ended with an error."""
        return self.kind not in ("", "success")


def result_path(folder: Path, job_id: str, rank: int) -> Path:
    """Where a rank writes how it ended."""
    return Path(JobPaths(folder, job_id, rank).result_pickle).with_suffix(".json")


def outcome(path: Path) -> Outcome:
    """What a rank wrote; nothing where the file is missing, is not a regular file, or says something else."""
    try:
        value = parse_json(read_tail(path, 16 * _LONGEST).encode())
        fields = {name: value[name] for name in ("kind", "message", "traceback")}
    except (OSError, ValueError, TypeError, KeyError):
        return Outcome()
    return Outcome(**fields) if all(isinstance(text, str) for text in fields.values()) else Outcome()


def _write(path: Path, error: Exception | None) -> None:
    value = {"kind": "success", "message": "", "traceback": ""}
    if error is not None:
        trace = "".join(traceback.format_exception(error))
        value = {"kind": type(error).__name__, "message": _end(str(error)), "traceback": _end(trace)}
    write_text(path, json.dumps(value) + "\n")


def _end(text: str) -> str:
    return text[-_LONGEST:].encode(errors="backslashreplace").decode()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job of the folder that the command line names."""
    (place,) = sys.argv[1:] if argv is None else argv
    folder = Path(place)
    try:
        require_own_folder(folder)
    except OSError as e:
        error = M2I2Error(f"The job folder {folder} was refused: {e.strerror}. Submit again with another --jobs.")
        report(error)
        raise SystemExit(EXIT_USER_ERROR) from e
    environment = SlurmJobEnvironment()
    result = result_path(folder, environment.job_id, environment.global_rank)
    result.unlink(missing_ok=True)  # of an earlier start: a rank that is killed leaves none
    try:
        process_job(folder)
    except Exception as error:
        _write(result, error)
        raise
    _write(result, None)


if __name__ == "__main__":
    main()
    # a limit's signal that comes while Python ends would kill a rank that has done all its work
    for late in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)
