"""The storage of a shard folder, by its place: on this machine, or behind a URL."""

from pathlib import Path

from m2i2.config import CacheConfig
from m2i2.data.shards.local import LocalStorage
from m2i2.data.shards.storage import Storage


def storage_of(place: str | Path | Storage, cache: CacheConfig | None = None) -> Storage:
    """The storage of a folder or URL; M2I2Error for a URL that is not supported. ``cache`` serves URLs."""
    if isinstance(place, Storage):
        return place
    if "://" in str(place) and not isinstance(place, Path):
        from m2i2.data.shards.remote import RemoteStorage

        return RemoteStorage(place, cache or CacheConfig())
    return LocalStorage(Path(place))
