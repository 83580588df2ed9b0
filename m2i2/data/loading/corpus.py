"""Several shard folders read as one data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2i2.config import CacheConfig
from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.records import Kind
from m2i2.data.shards.split import Sample, ShardSplit
from m2i2.data.shards.storage import Storage
from m2i2.errors import M2I2Error


class Corpus:
    """The same split of one or more shard folders, its items numbered through; never empty."""

    def __init__(self, parts: Sequence[ShardSplit | SelectedSplit]) -> None:
        if not parts:
            raise M2I2Error("No shard folders were given; make some with tools/make_shards.py and name them with --shards.")
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.shard_items = np.concatenate([part.shard_items for part in parts])
        self.shards = [(part.storage, shard) for part in parts for shard in part.shards]
        self.fingerprint = ":".join(f"{part.fingerprint}/{part.name}" for part in parts)
        if self.ends[-1] == 0:
            raise M2I2Error(f"The split {parts[0].name!r} of {', '.join(p.storage.place for p in parts)} holds no items.")

    @classmethod
    def open(cls, places: Sequence[str | Path | Storage], split: str, kind: Kind, cache: CacheConfig | None = None) -> "Corpus":
        """Open ``split`` of every folder or URL; M2I2Error for a missing split or for shards of another kind."""
        return cls([ShardSplit.open(place, split, kind, cache) for place in places])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, item: int) -> Sample:
        """The item with number ``item`` in [0, len(self))."""
        part = int(np.searchsorted(self.ends, item, side="right"))
        return self.parts[part].read(item - (int(self.ends[part - 1]) if part else 0))
