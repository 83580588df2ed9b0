"""A shard folder behind a URL: whole shards come into the node's cache, and are read there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2i2.config import CacheConfig
from m2i2.data.shards.cache import Cache, Entry, Fetch
from m2i2.data.shards.storage import INDEX, Shard, Storage
from m2i2.data.shards.transfer import FILE, Remote
from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROW, _HEADER = 32, 1 << 12
"""Bytes of a row of the table of items, and the most that a table has before its first row."""


class RemoteStorage(Storage):
    """A folder behind a URL. The index is read once; everything else has its hash there."""

    def __init__(self, url: str, config: CacheConfig) -> None:
        self.place, self._remote, self._cache = url, Remote(url, config), Cache(config)
        self._index: bytes | None = None
        self.capacity = self._cache.bytes

    def index(self) -> bytes:
        """The content of index.json."""
        if self._index is None:
            self._index = self._remote.content(INDEX, MOST_JSON)
        return self._index

    def check(self, shards: list[Shard]) -> None:
        """M2I2Error for names and hashes that cannot be those of shards. Whether the shards are there shows when they are read."""
        for shard in shards:
            if not FILE.fullmatch(shard.file):
                raise M2I2Error(
                    f"{self.name_of(INDEX)} names a shard {shard.file!r:.80}, which is not allowed in a URL; rename it."
                )
            self._require_hash(shard.sha256, shard.file)

    def _require_hash(self, sha256: str, file: str) -> None:
        if not _SHA256.fullmatch(sha256):
            raise M2I2Error(f"{self.name_of(INDEX)} has no sha256 of {file}, but {sha256!r:.80}; build the shards again.")

    def table(self, split: str, items: int, sha256: str) -> Path:
        """A split's table of items, its hash compared."""
        file = f"{split}.items.npy"
        self._require_hash(sha256, file)
        entry = Entry(sha256, items * _ROW + _HEADER, exact=False)
        self._cache.dropped_if_damaged(entry)
        return self._cache.kept(entry, self._fetch(file, entry))

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched first where it is not in the cache; `Unavailable` where that fails."""
        entry = _entry(shard)
        with self._cache.held(entry, self._fetch(shard.file, entry)) as descriptor:
            return os.pread(descriptor, size, offset)

    def dropped_if_damaged(self, shard: Shard) -> bool:
        """Whether the cached shard was damaged; then it is removed, and the next read fetches it again."""
        return self._cache.dropped_if_damaged(_entry(shard))

    @contextmanager
    def file(self, shard: Shard) -> Iterator[Path]:
        """The shard in the cache."""
        entry = _entry(shard)
        with self._cache.held(entry, self._fetch(shard.file, entry)):
            yield self._cache.path(entry)

    def prepare(self, shard: Shard) -> None:
        """Fetch the shard in one attempt, unless it is there or another process is at it."""
        entry = _entry(shard)
        self._cache.prepare(entry, self._fetch(shard.file, entry, attempts=1))

    def _fetch(self, file: str, entry: Entry, attempts: int | None = None) -> Fetch:
        return lambda descriptor: self._remote.fetch(file, descriptor, entry.bytes, entry.sha256, attempts)


def _entry(shard: Shard) -> Entry:
    return Entry(shard.sha256, shard.bytes)
