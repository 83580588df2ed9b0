"""How every command ends: a user's error in one paragraph and exit code 2, anything else with its traceback and 1."""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from m2i2.errors import M2I2Error
from m2i2.terminal import say

EXIT_USER_ERROR = 2
EXIT_FAULT = 1
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""As of a process that SIGPIPE ends: the reader of its output (`head`, a pager) has seen enough."""

_LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|timed out|timeout|nccl|socketstarterror", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


def guarded(command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit code.

    A rank that fails ends at once, without waiting for the others in any collective, nor for loader processes and the process
    group's threads, which can hang or abort an interpreter that shuts down around them. The others lose their connection to
    it, say so in a line, after the failed rank has said why, and end too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path that is not UTF-8 is shown with escapes; that is not a reason to fail
        with suppress(OSError):  # where it was taken for a file and is a pipe by now
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        code = EXIT_UNREAD
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
    if "RANK" in os.environ:  # in a process that is alone too, once it has joined itself
        sys.stdout.flush()
        os._exit(code)
    return code


def report(error: BaseException) -> int:
    """Say on the standard error what ended this process; returns its exit code."""
    where = f" (rank {os.environ.get('RANK', '0')})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    if isinstance(error, M2I2Error):
        text, code = f"error{where}: {error}", EXIT_USER_ERROR
    elif isinstance(error, KeyboardInterrupt):
        text, code = f"interrupted{where}", EXIT_INTERRUPTED
    else:
        text, code = _explained(error, where), EXIT_FAULT
    say(text, file=sys.stderr, flush=True)
    return code


def _explained(error: BaseException, where: str) -> str:
    """A fault with its traceback; a lost rank or loader process, which is not a fault of the program, in a paragraph."""
    if worker := _lost_worker(error):
        return (
            f"error{where}: a loader process ended ({worker}). The machine may be out of memory: lower "
            f"data.workers or training.batch. The same command resumes from the newest checkpoint."
        )
    if where and lost_another_rank(error):
        return (
            f"error{where}: lost contact with another rank. It failed, was killed or does not answer; what it said itself "
            f"stands above or in its own log. The same command resumes from the newest checkpoint."
        )
    return f"fault{where}:\n{''.join(traceback.format_exception(error))}"


def _lost_worker(error: BaseException | None) -> str | None:
    """What torch says of a loader process that ended, if that is behind this error.

    Its handler of SIGCHLD raises wherever the process happens to be, and what runs there may wrap the error in one of its own.
    """
    while error is not None:
        for line in str(error).splitlines():
            if found := _WORKER.search(line):
                return line[found.start() :]
        error = error.__cause__ or error.__context__
    return None


def lost_another_rank(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other side is gone."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return (
        isinstance(error, RuntimeError)
        and bool(_LOST.search(str(error)))
        and "torch/distributed" in "".join(frame.filename for frame in traceback.extract_tb(error.__traceback__))
    )
