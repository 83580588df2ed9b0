"""One process at a time in a folder."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.ownership import open_plain


def lock(folder: Path, seconds: float = 10) -> None:
    """Keep other processes from training in ``folder`` until this one ends, however it ends.

    M2I2Error where another one still does after ``seconds``: a killed run's processes may take a moment to go. File systems
    without locks go unguarded. A link in the place of the lock is not followed.
    """
    handle = open_plain(folder / "lock", os.O_RDWR | os.O_CREAT)  # closed by the process's end
    until = time.monotonic() + seconds
    while not _locked(handle):
        if time.monotonic() > until:
            raise M2I2Error(
                f"{folder} is in use by another run ({_owner(handle)}); end that one first, or choose another --output."
            )
        time.sleep(0.2)
    _sign(handle)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``, which is removed at the end; M2I2Error at once where another process holds it.

    ``what``: the work that it guards. Folders that cannot be written and file systems without locks go unguarded.
    """
    try:
        handle = open_plain(path, os.O_RDWR | os.O_CREAT)
    except OSError as e:
        if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield
        return
    try:
        if not _locked(handle) or not _is(handle, path):
            raise M2I2Error(
                f"{what} is under way in another process ({_owner(handle)}); wait for its end, or choose another --output."
            )
        _sign(handle)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock the file, or find that it cannot be locked at all; False where another process holds it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _is(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``: its last holder may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _owner(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace").strip() or "it has just begun or ended"


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
