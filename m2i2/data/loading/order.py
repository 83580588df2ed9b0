"""Which item comes when: a pure function of (seed, epoch, data set), free of ranks, workers and memory of the past.

Shards are permuted, then items within windows of a few shards, so that reading stays local and starting anywhere costs
one window. Every item comes exactly once an epoch.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def _generator(*key: int | str) -> np.random.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


class Order:
    """The order of a data set's items in every epoch.

    ``shard_items``: [shards] number of items of each shard; a shard's items are numbered consecutively.
    ``fingerprint``: identity of the data set; other data, other order. Without ``shuffle`` items come as they are numbered.
    """

    def __init__(self, shard_items: NDArray[np.integer], fingerprint: str, seed: int, window: int, *, shuffle: bool = True) -> None:
        self.shard_items = np.asarray(shard_items, dtype=np.int64)
        self.shard_starts = np.concatenate([[0], np.cumsum(self.shard_items)])
        self.fingerprint, self.seed, self.window, self.shuffle = fingerprint, seed, window, shuffle
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._places = lru_cache(maxsize=2)(self._make_places)

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    def __getstate__(self) -> tuple[NDArray[np.int64], str, int, int, bool]:
        return self.shard_items, self.fingerprint, self.seed, self.window, self.shuffle

    def __setstate__(self, state: tuple[NDArray[np.int64], str, int, int, bool]) -> None:
        self.__init__(*state[:4], shuffle=state[4])  # type: ignore[misc]

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's shard permutation, and the position at which each window starts (and the last one ends)."""
        shards = np.arange(len(self.shard_items))
        if self.shuffle:
            shards = _generator("shards", self.seed, epoch, self.fingerprint).permutation(len(shards))
        ends = np.concatenate([[0], np.cumsum(self.shard_items[shards])])
        starts = ends[:: self.window]
        return shards, starts if starts[-1] == len(self) else np.append(starts, len(self))

    def _make_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        shards, _ = self._epoch(epoch)
        mine = shards[window * self.window : (window + 1) * self.window]
        items = np.concatenate([np.arange(self.shard_starts[s], self.shard_starts[s + 1]) for s in mine])
        return _generator("items", self.seed, epoch, self.fingerprint, window).permutation(items) if self.shuffle else items

    def _make_places(self, epoch: int) -> NDArray[np.int64]:
        """[shards] place of each shard in the epoch's permutation."""
        return np.argsort(self._epoch(epoch)[0])

    def window_of(self, epoch: int, item: int) -> int:
        """The window of the epoch in which the item comes."""
        shard = int(np.searchsorted(self.shard_starts, item, side="right")) - 1
        return int(self._places(epoch)[shard]) // self.window

    def shards(self, epoch: int, window: int) -> NDArray[np.int64]:
        """The shards of the epoch from the window's first one on, in the order of their windows."""
        return self._epoch(epoch)[0][window * self.window :]

    def items(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The items at positions [start, stop) of the epoch."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions [{start}, {stop}) lie outside an epoch of {len(self)} items")
        _, starts = self._epoch(epoch)
        pieces = []
        while start < stop:
            window = int(np.searchsorted(starts, start, side="right")) - 1
            end = min(stop, int(starts[window + 1]))
            pieces.append(self._window(epoch, window)[start - starts[window] : end - starts[window]])
            start = end
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
