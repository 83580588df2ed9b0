"""Fetching shards before they are needed, in the order in which they will be.

Every process that reads samples has a thread that walks the order's shards from the window of its last reading on and has
each of them put into the node's cache. A shard that another process is fetching is left to it: the loader workers of a
node's ranks, which all read the same windows, share the fetching out among themselves without talking to each other, and
the training processes have no part in it. A thread that falls behind or fails costs only time: the process that reads a
shard fetches what is missing, and reports what is wrong.
"""

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.order import Order
from m2i2.data.shards.storage import Shard, Storage
from m2i2.errors import M2I2Error


class Lookahead:
    """Has the shards behind URLs fetched ahead of `reading`. It may be pickled and forked."""

    def __init__(self, corpus: Corpus, order: Order, epochs: int) -> None:
        """M2I2Error where the cache cannot hold the shards that are read at a time."""
        self.order, self.epochs, self.shards = order, epochs, corpus.shards
        self.bytes = np.array([0 if storage.capacity is None else shard.bytes for storage, shard in self.shards], dtype=np.int64)
        tables = sum(part.items.nbytes for part in corpus.parts if part.storage.capacity is not None)
        self.capacity = min((s.capacity for s, _ in self.shards if s.capacity is not None), default=0) - tables
        largest = np.sort(self.bytes)[::-1]
        needed = int(largest[: 2 * order.window].sum())
        if needed > self.capacity:
            raise M2I2Error(
                f"data.cache_gb={(self.capacity + tables) / 1e9:g} is too little: two windows of data.window={order.window} shards "
                f"and the tables of items take up to {(needed + tables) / 1e9:.3g} GB. Raise it, or lower data.window."
            )
        self._at, self._pid = (-1, -1), 0

    @classmethod
    def of(cls, corpus: Corpus, order: Order, epochs: int) -> "Lookahead | None":
        """One for a corpus of which a part is behind a URL, else None."""
        remote = any(part.storage.capacity is not None for part in corpus.parts)
        return cls(corpus, order, epochs) if remote else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_moved"} | {"_pid": 0}

    def reading(self, epoch: int, item: int) -> None:
        """Say that the item of the epoch is about to be read by this process."""
        at = epoch, self.order.window_of(epoch, item)
        forked = self._pid != os.getpid()
        if at == self._at and not forked:
            return
        self._at = at
        if forked:
            self._pid, self._moved = os.getpid(), threading.Event()
            threading.Thread(target=self._work, name="lookahead", daemon=True).start()
        self._moved.set()

    def _work(self) -> None:
        failed: set[Shard] = set()
        while True:
            self._moved.wait()
            self._moved.clear()
            at = self._at
            for storage, shard in self.coming(*at):
                if self._at != at:
                    break
                try:
                    if shard not in failed:
                        storage.prepare(shard)
                except M2I2Error:  # the process that reads the shard tries again and reports the error
                    failed.add(shard)

    def coming(self, epoch: int, window: int) -> Iterator[tuple[Storage, Shard]]:
        """The shards from a window on that the cache holds beside those of the window before, which others may still read."""
        before = self.order.shards(epoch, window - 1)[: self.order.window] if window else self.order.shards(epoch, 0)[:0]
        room, seen = self.capacity - int(self.bytes[before].sum()), set(before.tolist())
        while epoch < self.epochs and len(seen) < len(self.shards):
            for number in self.order.shards(epoch, window).tolist():
                if number in seen:
                    continue
                room -= int(self.bytes[number])
                if room < 0:
                    return
                seen.add(number)
                if self.bytes[number]:
                    yield self.shards[number]
            epoch, window = epoch + 1, 0
