"""A bounded folder of fetched files that the processes of a node share.

A file is known by the sha256 of its content and is there whole or not at all: it is written as ``NAME.partial`` and
renamed. The descriptor of ``NAME.partial`` carries the lock (flock) of the one process that fetches the file; the others
wait for it and find the file. Locks end with their process, so that nothing is left to clean up after a crash: a partial
file that nobody locks is rubbish. Space is made under one lock for the folder, by removing the files that were used
longest ago and that nobody holds; it is reserved by making the partial file as long as it will become.

A reader holds a file only while it reads. A removed file stays readable through the descriptors that are open.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from m2i2.config import CacheConfig
from m2i2.data.shards.storage import Unavailable
from m2i2.files import sha256_of

_PARTIAL = ".partial"
_OURS = re.compile(r"[0-9a-f]{64}(\.partial)?")
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
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = Path(config.cache_folder) if config.cache_folder else base / "m2i2" / "shards"
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
        with self._errors_named():
            path = self.path(entry)
            if path.exists() and sha256_of(path) == entry.sha256:
                return False
            path.unlink(missing_ok=True)
        return True

    def _acquired(self, entry: Entry, fetch: Fetch) -> int:
        """A descriptor of the file with the shared lock; fetched first, or waited for, where it is not there."""
        with self._errors_named():
            while (descriptor := self._open(entry)) is None and (descriptor := self._fetched(entry, fetch, True)) is None:
                pass
        return descriptor

    def _open(self, entry: Entry) -> int | None:
        """A descriptor of the file with the shared lock, the file marked as used now; None where it is not there."""
        try:
            descriptor = os.open(self.path(entry), os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if entry.exact and os.fstat(descriptor).st_size != entry.bytes:
            if _is_at(descriptor, self.path(entry)):
                self.path(entry).unlink(missing_ok=True)
            _let_go(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def _fetched(self, entry: Entry, fetch: Fetch, patient: bool) -> int | None:
        """Fetch the file and return its descriptor with the shared lock.

        None where another process has fetched it meanwhile or, without patience, is at it, or where there is no room.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.path(entry)
        partial = path.with_name(path.name + _PARTIAL)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        kept = False
        try:
            if not _locked_alone(descriptor, partial, patient):
                return None
            try:
                if path.exists() or not self._reserve(descriptor, entry, patient):
                    partial.unlink()
                    return None
                fetch(descriptor)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            kept = True
            return descriptor
        finally:
            if not kept:
                _let_go(descriptor)

    def _reserve(self, descriptor: int, entry: Entry, patient: bool) -> bool:
        """Give the partial file its size, after removing others; False where there is no room and no patience."""
        end = time.monotonic() + self.patience
        while True:
            with self._locked():
                if self._make_room(entry.bytes, os.fstat(descriptor).st_ino):
                    _lengthen(descriptor, entry.bytes)
                    return True
            if not patient:
                return False
            if entry.bytes > self.bytes or time.monotonic() > end:
                raise Unavailable(
                    f"The cache {self.folder} of {self.bytes / 1e9:g} GB has no room for a file of {entry.bytes / 1e9:.3g} GB "
                    f"beside those that are in use; raise data.cache_gb."
                )
            time.sleep(0.1)

    def _make_room(self, needed: int, own: int) -> bool:
        """Remove what was used longest ago until ``needed`` more bytes fit beside the rest; ``own`` is not counted."""
        found: list[tuple[int, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if _OURS.fullmatch(entry.name) and status.st_ino != own:
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = needed + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.bytes:
                break
            if _removed(path):
                total -= size
        return total <= self.bytes

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
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
                f"The cache {self.folder} cannot be used: {e.strerror or e}. Name a folder on a local disk: data.cache_folder."
            ) from e


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked_alone(descriptor: int, partial: Path, patient: bool) -> bool:
    """Lock the partial file; False where another process has the lock or, with patience, has finished or given up.

    It asks again and again: a lock that is waited for would be waited for as long as a finished file is in use.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _is_at(descriptor, partial)
        except BlockingIOError:
            if not patient or not _is_at(descriptor, partial):
                return False
            time.sleep(0.02)


def _lengthen(descriptor: int, size: int) -> None:
    """Give a file its size and its place on the disk; OSError where the disk has none."""
    if size and hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _removed(path: str) -> bool:
    """Remove a file that nobody holds; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, Path(path)):
            os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        _let_go(descriptor)


def _let_go(descriptor: int) -> None:
    """Unlock and close. A copy that a forked process has inherited would keep the lock if it were only closed."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
