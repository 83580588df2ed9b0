"""A shard folder of this machine."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2i2.data.shards.storage import INDEX, Shard, Storage
from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON, check_file, read_bytes


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

    def dropped_if_damaged(self, shard: Shard) -> bool:
        """A file of the user's own is never dropped."""
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
