"""One run at a time in a folder."""

import errno
import fcntl
import os
import socket
import time
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
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EAGAIN):
                return
        if time.monotonic() > until:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise M2I2Error(f"{folder} is in use by another run ({owner}); end that one first, or choose another --output.")
        time.sleep(0.2)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
