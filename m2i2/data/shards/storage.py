"""Where the files of a shard folder lie: on this machine, or behind a URL (`remote.py`)."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from m2i2.errors import M2I2Error

INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """A tar of the index."""

    file: str
    samples: int
    items: int
    bytes: int
    sha256: str


class Unavailable(M2I2Error):
    """Shards that are temporarily unreachable. The fault is not a sample's: no other sample may take its place."""


class Storage(ABC):
    """The files of one shard folder. It may be pickled and forked."""

    place: str
    """The folder or URL, as it was given."""
    capacity: int | None = None
    """Bytes of shards that fit on this machine at a time; None where they lie here anyway."""

    def name_of(self, file: str) -> str:
        """How messages call a file of the folder."""
        return f"{self.place.rstrip('/')}/{file}"

    @abstractmethod
    def index(self) -> bytes:
        """The content of index.json; M2I2Error where there is none, OSError where it cannot be read."""

    @abstractmethod
    def check(self, shards: list[Shard]) -> None:
        """M2I2Error for shards that can be seen to be wrong without reading them."""

    @abstractmethod
    def table(self, split: str, items: int, sha256: str) -> Path:
        """A split's table of items, as a file of this machine."""

    @abstractmethod
    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a shard, fewer where it ends before; OSError where it cannot be read."""

    def close(self) -> None:
        """Close what is open; the next reading opens it again."""
        return

    @abstractmethod
    def dropped_if_damaged(self, shard: Shard) -> bool:
        """After damaged bytes: whether reading again may give other ones."""

    @abstractmethod
    def file(self, shard: Shard) -> AbstractContextManager[Path]:
        """The whole shard as a file of this machine, which stays there as long as the context."""

    def prepare(self, shard: Shard) -> None:
        """Have the shard on this machine soon to be read, if that is easy; `Unavailable` where an attempt failed."""
        return
