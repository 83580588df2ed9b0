"""Hosts that a run must not use again: ``exclude_hosts.txt`` in its folder, one host a line.

Whatever proves that a host computes wrongly writes it there; SLURM jobs of the run then leave that host out.
"""

import re
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.files import append_text, read_bytes
from m2i2.ownership import PRIVATE

EXCLUDED = "exclude_hosts.txt"
_MOST = 1 << 20
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def excluded_hosts(run: Path) -> list[str]:
    """The hosts that the run's file names, without the rest of their lines behind a #; none without a file.

    M2I2Error where the file cannot be read, or a line is not the name of a host: the names become options of SLURM's commands.
    """
    path = run / EXCLUDED
    try:
        lines = read_bytes(path, _MOST).decode("utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise M2I2Error(f"Cannot read {path}: {e.strerror}. Repair or remove it.") from e
    hosts = [host for line in lines if (host := line.partition("#")[0].strip())]
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise M2I2Error(
                f"{path} names {host!r:.80}, which is not the name of a host; write one host per line, or remove the line."
            )
    return list(dict.fromkeys(hosts))


def exclude_host(run: Path, host: str, why: str = "") -> Path:
    """Add ``host`` to the run's file, with the reason behind a #, unless it is there; returns the file. OSError as of writing."""
    run.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    if host not in excluded_hosts(run):
        reason = " ".join(why.replace("#", "").split())
        append_text(run / EXCLUDED, f"{host}  # {reason}\n" if reason else f"{host}\n")
    return run / EXCLUDED


def same_host(one: str, other: str) -> bool:
    """Whether two names mean the same host: one may be the first part of the other, as node1 of node1.lab.edu."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
