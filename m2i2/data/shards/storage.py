"""Where the files of a shard folder lie: on this machine, or behind a URL (`remote.py`)."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2i2.config import CacheConfig
from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON, check_file, read_bytes

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
    """Shards that cannot be had just now. The fault is not a sample's: no other sample may take its place."""


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
    def mended(self, shard: Shard) -> bool:
        """After damaged bytes: whether reading again may give other ones."""

    @abstractmethod
    def file(self, shard: Shard) -> AbstractContextManager[Path]:
        """The whole shard as a file of this machine, which stays there as long as the context."""

    def prepare(self, shard: Shard) -> None:
        """Have the shard on this machine soon to be read, if that is easy; `Unavailable` where an attempt failed."""
        return


class LocalStorage(Storage):
    """A folder of this machine. Open files are cached per process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)
        self._files: OrderedDict[str, int] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> Path:
        return self.folder

    def __del__(self) -> None:
        self.close()

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]

    def index(self) -> bytes:
        """The content of index.json."""
        try:
            return read_bytes(self.folder / INDEX, MOST_JSON)
        except FileNotFoundError as e:
            what = "was not finished" if self.folder.is_dir() and any(self.folder.iterdir()) else "holds no shards"
            raise M2I2Error(f"{self.folder} has no {INDEX}: it {what}; run tools/make_shards.py with it as --output.") from e

    def check(self, shards: list[Shard]) -> None:
        """M2I2Error for a shard that is not there or has another size than the index says."""
        for shard in shards:
            path = self.folder / shard.file
            try:
                size = check_file(path)
            except OSError as e:
                raise M2I2Error(f"The shard {path} of the index cannot be read: {e.strerror}. Copy it again.") from e
            if size != shard.bytes:
                raise M2I2Error(
                    f"The shard {path} has {size} bytes, the index says {shard.bytes}: it is truncated or the index is "
                    f"stale. Copy the folder again, or build the shards again."
                )

    def table(self, split: str, items: int, sha256: str) -> Path:
        """A split's table of items; its hash is compared by tools/make_shards.py verify alone."""
        return self.folder / f"{split}.items.npy"

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Bytes of a shard."""
        return os.pread(self._open(shard.file), size, offset)

    def mended(self, shard: Shard) -> bool:
        """A file of the user's own is never mended."""
        return False

    @contextmanager
    def file(self, shard: Shard) -> Iterator[Path]:
        """The shard itself."""
        yield self.folder / shard.file

    def close(self) -> None:
        """Close the shards; the next reading opens them again."""
        while getattr(self, "_files", None):
            os.close(self._files.popitem()[1])

    def _open(self, file: str) -> int:
        if self._pid != os.getpid():  # a forked worker opens its own
            self._files, self._pid = OrderedDict(), os.getpid()
        if file not in self._files:
            if len(self._files) >= 64:
                os.close(self._files.popitem(last=False)[1])
            self._files[file] = os.open(self.folder / file, os.O_RDONLY)
        self._files.move_to_end(file)
        return self._files[file]


def storage_of(place: str | Path | Storage, cache: CacheConfig | None = None) -> Storage:
    """The storage of a folder or URL; M2I2Error for a URL that is none of ours. ``cache`` serves URLs."""
    if isinstance(place, Storage):
        return place
    if "://" in str(place) and not isinstance(place, Path):
        from m2i2.data.shards.remote import RemoteStorage

        return RemoteStorage(place, cache or CacheConfig())
    return LocalStorage(Path(place))
