"""A shard folder of this machine."""

import os
import shlex
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
        except (FileNotFoundError, NotADirectoryError) as e:
            raise M2I2Error(f"{self.folder} has no {INDEX}: {_instead(self.folder)}") from e

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


def _instead(path: Path) -> str:
    """What a path is that was named as a folder of shards, and what to do."""
    if not path.exists():
        return "there is no such folder. Name one that tools/make_shards.py has written."
    making = f"python tools/make_shards.py captions (or vqa) SOURCE {shlex.quote(str(path))} --output shards/{path.stem or 'data'}"
    if path.is_file():
        unpacked = "Unpack it first. " if path.suffix.lower() in (".zip", ".gz", ".tgz", ".tar") else ""
        return f"it is a file, not a folder of shards. {unpacked}Make shards of the data: {making}; then name that folder."
    if (path / "building.json").exists():
        return "its build was not finished. Give the same tools/make_shards.py command again; it continues."
    if (path / "settings.json").exists():
        return "it is the folder of a run, not of shards. Name the shards that tools/make_shards.py has written."
    names = sorted(inner.name for inner in path.iterdir())
    if inner := [str(path / name) for name in names if (path / name / INDEX).exists()]:
        return f"the shards are one folder below. Name one: {', '.join(inner[:8])}."
    if not names:
        return "it is empty and holds no shards. Name a folder that tools/make_shards.py has written."
    return f"it holds no shards, but {', '.join(names[:3])}{' ...' if names[3:] else ''}. Make shards of raw data first: {making}"
