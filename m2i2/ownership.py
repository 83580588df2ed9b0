"""Files and folders in places that other users of the machine may write: no planted link is followed, no foreign folder used."""

import errno
import os
import stat
import tempfile
from pathlib import Path

PRIVATE = 0o700
"""Mode of the folders that are made for a run, a job or the cache. A folder that exists keeps its own mode."""


def user_cache(name: str) -> Path:
    """Where files of the user's own are kept between runs: below XDG_CACHE_HOME, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "m2i2" / name


def require_own_folder(folder: Path, *, group: bool = False, opened: int | None = None) -> None:
    """PermissionError where ``folder`` belongs to another user, or where others may write in it.

    ``group``: whether the members of its group may. ``opened``: its descriptor, where the open folder is the one to check.
    """
    status = os.stat(folder if opened is None else opened)
    writable = status.st_mode & (stat.S_IWOTH if group else stat.S_IWOTH | stat.S_IWGRP)
    if status.st_uid == os.geteuid() and not writable:
        return
    # Some file systems (NFS for root, shares of other systems) show every file with an owner or a mode of their own.
    with tempfile.TemporaryFile(dir=folder) as file:
        mine = os.fstat(file.fileno())
    if status.st_uid != mine.st_uid:
        raise PermissionError(errno.EPERM, f"the folder belongs to another user, number {status.st_uid}", str(folder))
    if writable and not mine.st_mode & writable:
        who = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
        raise PermissionError(errno.EPERM, f"{who} may write in the folder; `chmod go-w` ends that", str(folder))


def open_plain(path: str | Path, flags: int, mode: int = 0o600, *, within: int | None = None) -> int:
    """A descriptor of the regular file that ``path`` itself names; OSError for a symbolic link, a pipe, a device or a folder.

    ``within``: the descriptor of a folder in which a relative ``path`` starts.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=within)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK):  # a link, on Linux and on BSD
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed here", str(path)) from e
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def require_own_file(descriptor: int, name: str) -> None:
    """PermissionError where an open file belongs to another user, or has a second name (a hard link)."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"the file belongs to another user, number {status.st_uid}", name)
    if status.st_nlink > 1:
        raise PermissionError(errno.EPERM, "the file has a second name elsewhere (a hard link)", name)


def inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, with every link in it followed, lies in ``folder``."""
    return path.resolve().is_relative_to(folder.resolve())
