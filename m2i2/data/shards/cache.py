"""A bounded folder of fetched files that the processes of a node share.

A file is known by the sha256 of its content and is there whole or not at all: it is written as ``NAME.RANDOM.partial`` and
renamed. The descriptor of ``NAME.lock`` carries the lock (flock) of the one process that fetches the file; the others
wait for it and find the file. Locks end with their process, so that nothing is left to clean up after a crash: a partial
file that nobody locks is left over. Space is made under one lock for the folder, by removing the files that were used
longest ago and that nobody holds; it is reserved by making the partial file as long as it will become.

A reader holds a file only while it reads. A removed file stays readable through the descriptors that are open.

The folder belongs to one user, and nobody else may write in it. Every file is opened without following a link, in the folder
that was checked, and must be that user's own.
"""

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from m2i2.config import CacheConfig
from m2i2.data.shards.storage import Unavailable
from m2i2.files import digest_of
from m2i2.ownership import PRIVATE, open_plain, require_own_file, require_own_folder, user_cache

_PARTIAL = ".partial"
_OURS = re.compile(r"[0-9a-f]{64}(\.([0-9a-f]{16}\.)?partial)?")
"""Nothing else in the folder is counted or removed."""
_LOCK = ".lock"


@dataclass(frozen=True)
class Entry:
    """A file that may be in the cache."""

    sha256: str
    bytes: int
    exact: bool = True
    """Whether ``bytes`` is its size; else it is the largest that it may have."""


Fetch = Callable[[int], object]
"""Writes a file's checked content into a descriptor, from its beginning; `Unavailable` where that fails."""


class Cache:
    """The folder. Free of state, so that it may be pickled and forked."""

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(config.cache_folder) if config.cache_folder else user_cache("shards")
        self.bytes, self.patience = int(config.cache_gb * 1e9), config.cache_timeout

    def path(self, entry: Entry) -> Path:
        """Where the file is, when it is there."""
        return self.folder / entry.sha256

    @contextmanager
    def held(self, entry: Entry, fetch: Fetch) -> Iterator[int]:
        """A descriptor of the file, fetched first where it is not there. Nobody removes the file meanwhile."""
        descriptor = self._acquired(entry, fetch)
        try:
            yield descriptor
        finally:
            _let_go(descriptor)

    def kept(self, entry: Entry, fetch: Fetch) -> Path:
        """The file, fetched first where it is not there; it stays until this process ends."""
        self._acquired(entry, fetch)  # its descriptor is left open, with its lock
        return self.path(entry)

    def prepare(self, entry: Entry, fetch: Fetch) -> None:
        """Have the file there, unless another process is fetching it or there is no room for it now."""
        with self._errors_named():
            descriptor = self._open(entry)
            if descriptor is None:
                descriptor = self._fetched(entry, fetch, patient=False)
            if descriptor is not None:
                _let_go(descriptor)

    def dropped_if_damaged(self, entry: Entry) -> bool:
        """Compare the file with its hash; whether it was wrong, and is now removed."""
        with self._errors_named(), self._folder() as folder:
            try:
                with open(_opened(folder, entry.sha256), "rb") as file:
                    if digest_of(file) == entry.sha256:
                        return False
            except FileNotFoundError:
                return True
            _unlink(folder, entry.sha256)
        return True

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """A descriptor of the folder, which is made where it is missing; PermissionError where it is not the user's own."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            require_own_folder(self.folder, opened=folder)
            yield folder
        finally:
            os.close(folder)

    def _acquired(self, entry: Entry, fetch: Fetch) -> int:
        """A descriptor of the file with the shared lock; fetched first, or waited for, where it is not there."""
        with self._errors_named():
            while (descriptor := self._open(entry)) is None and (descriptor := self._fetched(entry, fetch, True)) is None:
                pass
        return descriptor

    def _open(self, entry: Entry) -> int | None:
        """A descriptor of the file with the shared lock, the file marked as used now; None where it is not there."""
        with self._folder() as folder:
            try:
                descriptor = _opened(folder, entry.sha256)
            except FileNotFoundError:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if entry.exact and os.fstat(descriptor).st_size != entry.bytes:
                if _is_at(descriptor, folder, entry.sha256):
                    _unlink(folder, entry.sha256)
                _let_go(descriptor)
                return None
            os.utime(descriptor)
            return descriptor

    def _fetched(self, entry: Entry, fetch: Fetch, patient: bool) -> int | None:
        """Fetch the file and return its descriptor with the shared lock.

        None where another process has fetched it meanwhile or, without patience, is at it, or where there is no room.
        """
        name = entry.sha256 + _LOCK
        with self._folder() as folder:
            lock = _opened(folder, name, os.O_RDWR | os.O_CREAT)
            try:
                if not _locked_alone(lock, folder, name, patient):
                    return None
                try:
                    return None if self.path(entry).exists() else self._written(folder, entry, fetch, patient)
                finally:
                    _unlink(folder, name)
            finally:
                _let_go(lock)

    def _written(self, folder: int, entry: Entry, fetch: Fetch, patient: bool) -> int | None:
        """The descriptor of the file, fetched, with the shared lock; None without room. The caller has the file's lock."""
        for left in os.listdir(folder):  # by a process that was killed while it had this lock
            if left.startswith(entry.sha256) and left.endswith(_PARTIAL):
                _unlink(folder, left)
        partial = f"{entry.sha256}.{secrets.token_hex(8)}{_PARTIAL}"
        descriptor = self._reserved(folder, partial, entry, patient)
        if descriptor is None:
            return None
        try:
            fetch(descriptor)
            os.replace(partial, entry.sha256, src_dir_fd=folder, dst_dir_fd=folder)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            _unlink(folder, partial)
            _let_go(descriptor)
            raise
        return descriptor

    def _reserved(self, folder: int, partial: str, entry: Entry, patient: bool) -> int | None:
        """A new locked partial file of the entry's size, after removing others; None where there is no room and no patience."""
        end = time.monotonic() + self.patience
        while True:
            with self._locked(folder):
                if self._make_room(folder, entry.bytes):
                    return _new(folder, partial, entry.bytes)
            if not patient:
                return None
            if entry.bytes > self.bytes or time.monotonic() > end:
                raise Unavailable(
                    f"The cache {self.folder} of {self.bytes / 1e9:g} GB has no room for a file of {entry.bytes / 1e9:.3g} GB "
                    f"beside those that are in use; raise data.cache_gb."
                )
            time.sleep(0.1)

    def _make_room(self, folder: int, needed: int) -> bool:
        """Remove what was used longest ago until ``needed`` more bytes fit beside the rest; whether they do."""
        found: list[tuple[int, int, str]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if _OURS.fullmatch(entry.name):
                        found.append((status.st_mtime_ns, status.st_size, entry.name))
        total = needed + sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            if total <= self.bytes:
                break
            if _removed(folder, name):
                total -= size
        return total <= self.bytes

    @contextmanager
    def _locked(self, folder: int) -> Iterator[None]:
        descriptor = _opened(folder, _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _let_go(descriptor)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Unavailable(
                    f"The disk of the cache {self.folder} is full ({e.strerror}), below the {self.bytes / 1e9:g} GB that it may "
                    f"take; free some space, lower data.cache_gb, or name another data.cache_folder."
                ) from e
            raise Unavailable(
                f"The cache {self.folder} cannot be used: {e.strerror or e}{_which(e, self.folder)}. "
                f"Name a folder of your own on a local disk: data.cache_folder."
            ) from e


def _which(e: OSError, folder: Path) -> str:
    """The file that an error is about, in brackets, where it is about one in the folder."""
    return f" ({e.filename})" if isinstance(e.filename, str) and e.filename != str(folder) else ""


def _opened(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file of the folder that is the user's own and no link."""
    descriptor = open_plain(name, flags, within=folder)
    try:
        require_own_file(descriptor, name)
    except PermissionError:
        os.close(descriptor)
        raise
    return descriptor


def _new(folder: int, name: str, size: int) -> int:
    """A new file of a size, with the exclusive lock; OSError, and no file, where the disk has no room."""
    descriptor = _opened(folder, name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _lengthen(descriptor, size)
    except BaseException:
        _unlink(folder, name)
        _let_go(descriptor)
        raise
    return descriptor


def _unlink(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _is_at(descriptor: int, folder: int, name: str) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _locked_alone(lock: int, folder: int, name: str, patient: bool) -> bool:
    """Lock the lock file; False where another process has the lock or, with patience, has finished or given up."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _is_at(lock, folder, name)
        except BlockingIOError:
            if not patient or not _is_at(lock, folder, name):
                return False
            time.sleep(0.02)


def _lengthen(descriptor: int, size: int) -> None:
    """Give a file its size and its place on the disk; OSError where the disk has none."""
    if size and hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _removed(folder: int, name: str) -> bool:
    """Remove a file that nobody holds; whether it is gone."""
    try:
        descriptor = _opened(folder, name)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, folder, name):
            _unlink(folder, name)
        return True
    except BlockingIOError:
        return False
    finally:
        _let_go(descriptor)


def _let_go(descriptor: int) -> None:
    """Unlock and close. A copy that a forked process has inherited would keep the lock if it were only closed."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
