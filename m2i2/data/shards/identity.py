"""What makes a record the same record: how a build knows that finished shards hold the data it is given now."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from m2i2.data.images.decoding import MAX_BYTES
from m2i2.data.records import ImageRecord
from m2i2.files import read_bytes


def identity(record: ImageRecord, rejected: bool = False) -> bytes:
    """32 bytes that change with the record's texts or its image.

    An image file counts by its name and size, so that moved data is the same data and nothing needs to be read; the file of
    a ``rejected`` record counts by its content, because a repaired file may still have its old size.
    """
    image: list[str | int]
    if isinstance(record.image, bytes):
        image = [hashlib.sha256(record.image).hexdigest()]
    else:
        image = [record.image.name, _size(record.image), _content(record.image) if rejected else ""]
    questions = [asdict(question) | {"metadata": dict(question.metadata)} for question in record.questions]
    value = [record.key, record.split, image, record.captions, questions, dict(record.metadata)]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
    except (OSError, ValueError):  # M2I2Error, for an oversized file, is one of them
        return ""


def together(parts: Iterable[bytes]) -> str:
    """One sha256 of many."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part)
    return h.hexdigest()


def records_digest(records: Collection[ImageRecord], rejected: Collection[str]) -> str:
    """The digest of a shard's records, ``rejected`` being the keys of those that were."""
    return together(identity(record, record.key in rejected) for record in records)


def keys_digest(records: Collection[ImageRecord]) -> str:
    """The digest of a shard's keys alone."""
    return together(record.key.encode("utf-8", "surrogatepass") + b"\n" for record in records)


def by_shard(source: Iterable[ImageRecord], samples_per_shard: int) -> Iterator[tuple[str, int, Iterator[ImageRecord]]]:
    """(split, shard number, its records in order); a shard's records must be consumed before the next shard is asked for."""
    counts: dict[str, int] = {}

    def place(record: ImageRecord) -> tuple[str, int]:
        number = counts.get(record.split, 0)
        counts[record.split] = number + 1
        return record.split, number // samples_per_shard

    for (split, number), records in groupby(source, place):
        yield split, number, records
