"""Checking shards: every hash, and every tar member against the table of items."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import read_table
from m2i2.data.shards.storage import Shard, Storage
from m2i2.data.shards.tar import members
from m2i2.errors import M2I2Error
from m2i2.files import check_file, sha256_of


def verify(place: str | Path | Storage, index: dict[str, Any], progress: Callable[[str], None] = lambda file: None) -> list[str]:
    """Every fault of a shard folder: hashes, tar members that escape, repeat or are not where the table says."""
    storage, faults = storage_of(place), []
    for name, split in index["splits"].items():
        shards = [Shard(**row) for row in split["shards"]]
        table = f"{name}.items.npy"
        try:
            items_sha256 = split["items_sha256"]
            path = storage.table(name, sum(shard.items for shard in shards), items_sha256)
            items = read_table(path, sum(shard.items for shard in shards))
            if sha256_of(path) != items_sha256:
                faults.append(f"{table}: does not match its hash")
        except (OSError, M2I2Error) as e:
            faults.append(f"{table}: cannot be read ({e})")
            continue
        for number, shard in enumerate(shards):
            progress(shard.file)
            try:
                with storage.file(shard) as path:
                    check_file(path)
                    digest = sha256_of(path)
                    found = members(path)
            except (OSError, tarfile.TarError, ValueError) as e:
                faults.append(f"{shard.file}: cannot be read ({e})")
                continue
            if digest != shard.sha256:
                faults.append(f"{shard.file}: does not match its hash")
            names = [member for member, _ in found.values()]
            faults += [f"{shard.file}: the member {m!r} escapes its folder" for m in names if Path(m).name != m]
            faults += [f"{shard.file}: the member {m!r} comes twice" for m, n in Counter(names).items() if n > 1]
            mine = items[items["shard"] == number]
            places = {
                (int(r[o]), int(r[s])) for r in mine for o, s in (("image_offset", "image_size"), ("text_offset", "text_size"))
            }
            faults += [
                f"{shard.file}: no member of {size} bytes at {offset}, where {table} has one"
                for offset, size in sorted(places - {(o, s) for o, (_, s) in found.items()})
            ][:3]
    return faults
