"""Shards: WebDataset tars that the stock library reads, with an index that finds any item by its number.

A folder holds one data set: ``{split}-000000.tar`` ... of samples ``{key}.jpg|png`` + ``{key}.json``, ``{split}.items.npy``
with one row an item (a caption record, or one question), and ``index.json``. Opening costs the number of shards, not of
items: the table of items is mapped, not read.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2i2.config import CacheConfig
from m2i2.data.images.decoding import MAX_BYTES
from m2i2.data.records import KINDS, Kind, Question
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.storage import INDEX, Shard, Storage
from m2i2.errors import M2I2Error, shown
from m2i2.files import check_file, parse_json

SPLIT_NAME = re.compile(r"[a-z0-9_]+")
FORMAT = 2
ITEM = np.dtype(
    [
        ("shard", "<u4"),
        ("part", "<u4"),
        ("image_offset", "<u8"),
        ("text_offset", "<u8"),
        ("image_size", "<u4"),
        ("text_size", "<u4"),
        ("image_crc32", "<u4"),
        ("text_crc32", "<u4"),
    ]
)
"""A row of the table of items: its shard, which question of its sample it is, where image and text lie in the tar, and
their checksums, which every reading compares."""


class _Row(NamedTuple):
    """A row of `ITEM`, as Python's numbers."""

    shard: int
    part: int
    image_offset: int
    text_offset: int
    image_size: int
    text_size: int
    image_crc32: int
    text_crc32: int


MAX_TEXT = 16 << 20
"""No text of a sample is larger than this many bytes; an image may have images.MAX_BYTES."""
_SHARD_NAME = re.compile(r"[a-z0-9_]+-[0-9]{6,}\.tar")
_DIGEST = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Sample:
    """One item as it was stored."""

    key: str
    image: bytes
    image_sha256: str
    captions: tuple[str, ...]
    question: Question | None
    metadata: Mapping[str, str]
    shard: str


@dataclass(frozen=True)
class ImageQuestion:
    """A question of a split, and which image it is about."""

    item: int
    key: str
    image_sha256: str
    question: Question


def read_index(place: str | Path | Storage) -> dict[str, Any]:
    """The index of a shard folder, its shape checked; M2I2Error where there is none or it is not one of ours."""
    storage = storage_of(place)
    path = storage.name_of(INDEX)
    try:
        index = parse_json(storage.index())
        if index["format"] != FORMAT:
            raise M2I2Error(f"{path} has format {shown(index['format'])}, this version reads {FORMAT}; build the shards again.")
        if index["kind"] not in KINDS:
            raise ValueError(f"kind {shown(index['kind'])}")
        _digest(index["fingerprint"], "fingerprint")
        _text(index["source"], "source")
        for name, split in index["splits"].items():
            if not SPLIT_NAME.fullmatch(name):
                raise M2I2Error(f"{path} has a split {name!r:.80}, which is not a valid name of a split; build the shards again.")
            _digest(split["items_sha256"], f"items_sha256 of {name}")
            if not isinstance(split["shards"], list):
                raise TypeError(f"split {name}")
            shards = [Shard(**row) for row in split["shards"]]
            for shard in shards:
                if not _SHARD_NAME.fullmatch(shard.file):
                    raise M2I2Error(
                        f"{path} names a shard {shard.file!r:.80}, which is not a valid name of a shard; build the shards again."
                    )
                sizes = (shard.samples, shard.items, shard.bytes)
                if not all(type(n) is int and 0 <= n < 1 << 53 for n in sizes):
                    raise ValueError(f"sizes of {shard.file}")
                _digest(shard.sha256, f"sha256 of {shard.file}")
            if len({shard.file for shard in shards}) != len(shards):
                raise ValueError(f"split {name} names a shard twice")
    except M2I2Error:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise M2I2Error(f"{path} is damaged ({type(e).__name__}: {e}); build the shards again.") from e
    return index


def _digest(value: Any, what: str) -> None:
    """ValueError unless ``value`` is a hash in hexadecimal: hashes become names of files."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{what} is not a hash")


def read_table(path: Path, rows: int) -> NDArray[np.void]:
    """A table of ``rows`` items, mapped; M2I2Error where it is damaged or another one."""
    try:
        size = check_file(path)
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(table, np.memmap) or size != table.offset + table.nbytes:
            raise ValueError("it is not a table, or its size is not the one in its header")
    except Exception as e:  # numpy's reader raises almost anything on damaged headers
        raise M2I2Error(f"The table of items {path} cannot be read ({e}); build the shards again.") from e
    if table.dtype != ITEM or table.shape != (rows,):
        raise M2I2Error(
            f"{path} has {table.shape} rows of {table.dtype}, the index says {rows} items: they do not belong together. "
            f"Build the shards again."
        )
    return table


class ShardSplit:
    """One split of a shard folder, read by item number. It may be pickled and forked."""

    def __init__(self, storage: Storage, name: str, index: Mapping[str, Any]) -> None:
        self.storage, self.name = storage, name
        self.kind: Kind = index["kind"]
        split = index["splits"][name]
        self.fingerprint = str(index["fingerprint"])
        self.shards = [Shard(**row) for row in split["shards"]]
        self.shard_items: NDArray[np.int64] = np.array([shard.items for shard in self.shards], dtype=np.int64)
        storage.check(self.shards)
        items = sum(shard.items for shard in self.shards)
        self._table = storage.table(name, items, split["items_sha256"])
        self.items: NDArray[np.void] = read_table(self._table, items)

    @classmethod
    def open(cls, place: str | Path | Storage, split: str, kind: Kind, cache: CacheConfig | None = None) -> "ShardSplit":
        """A split of a folder or URL; M2I2Error for one without finished shards, of the other kind, or without the split."""
        storage = storage_of(place, cache)
        index = read_index(storage)
        if index["kind"] != kind:
            stage = "pretraining" if kind == "captions" else "finetuning and evaluation"
            raise M2I2Error(f"{storage.place} holds {index['kind']} shards; {stage} needs {kind}.")
        if split not in index["splits"]:
            raise M2I2Error(f"{storage.place} has no split {split!r}; it has {', '.join(index['splits'])}.")
        return cls(storage, split, index)

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["storage"], state["name"], read_index(state["storage"]))  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, item: int) -> Sample:
        """The item with this number; M2I2Error names the shard where its bytes are not what the index promises."""
        row = _Row(*self.items[item].item())
        image = self._bytes(row.shard, row.image_offset, row.image_size, row.image_crc32, MAX_BYTES, "image")
        payload = self._payload(item)
        return Sample(
            payload["key"],
            image,
            payload["image_sha256"],
            tuple(payload.get("captions", ())),
            self._question(payload, item) if self.kind == "vqa" else None,
            payload["metadata"],
            self.shards[row.shard].file,
        )

    def _payload(self, item: int) -> dict[str, Any]:
        """The text of the item's sample, its fields checked."""
        row = _Row(*self.items[item].item())
        text = self._bytes(row.shard, row.text_offset, row.text_size, row.text_crc32, MAX_TEXT, "text")
        try:
            payload: dict[str, Any] = parse_json(text)
            _text(payload["key"], "key")
            _digest(payload["image_sha256"], "image_sha256")
            _texts_by_name(payload["metadata"])
            content = payload["captions" if self.kind == "captions" else "questions"]
            if not isinstance(content, list) or not content:
                raise TypeError("no captions or questions")
            if self.kind == "captions":
                for caption in content:
                    _text(caption, "caption")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise self._damaged(item, e) from e
        return payload

    def _question(self, payload: dict[str, Any], item: int) -> Question:
        try:
            question = Question(**payload["questions"][int(self.items[item]["part"])])
            for text in (question.id, question.question, question.answer):
                _text(text, "question")
            if not isinstance(question.closed, bool):
                raise TypeError("closed")
            _texts_by_name(question.metadata)
        except (ValueError, TypeError, IndexError) as e:
            raise self._damaged(item, e) from e
        return question

    def _damaged(self, item: int, e: Exception) -> M2I2Error:
        file = self.storage.name_of(self.shards[int(self.items[item]["shard"])].file)
        return M2I2Error(
            f"Item {item} of {file} has a damaged text ({type(e).__name__}: {e}); "
            f"check the folder with tools/make_shards.py verify {self.storage.place}."
        )

    def _bytes(self, shard: int, offset: int, size: int, crc32: int, most: int, what: str) -> bytes:
        """``what``, the image or the text of a sample, at most ``most`` bytes."""
        if shard >= len(self.shards) or size > most or offset + size > self.shards[shard].bytes:
            raise M2I2Error(
                f"{self._table} points outside its shards (shard {shard}, offset {offset}, {size} bytes); build them again."
            )
        stored = self.shards[shard]
        data = self._read(stored, offset, size)
        whole = len(data) == size and zlib.crc32(data) == crc32
        if not whole and self.storage.dropped_if_damaged(stored):
            data = self._read(stored, offset, size)
            whole = len(data) == size and zlib.crc32(data) == crc32
        if whole:
            return data
        path = self.storage.name_of(stored.file)
        if len(data) != size:
            raise M2I2Error(f"{path} ends before offset {offset + size}: it is truncated. Copy it again.")
        raise M2I2Error(f"{path} holds damaged bytes at offset {offset} (the {what} of a sample). Copy it again.")

    def _read(self, shard: Shard, offset: int, size: int) -> bytes:
        try:
            return self.storage.read(shard, offset, size)
        except OSError as e:
            raise M2I2Error(f"Reading {self.storage.name_of(shard.file)} failed: {e.strerror}.") from e

    def question(self, item: int) -> ImageQuestion:
        """One question of a vqa split, without its image."""
        payload = self._payload(item)
        return ImageQuestion(item, payload["key"], payload["image_sha256"], self._question(payload, item))

    def questions(self) -> Iterator[ImageQuestion]:
        """The questions of a vqa split, without its images."""
        return (self.question(item) for item in range(len(self)))

    def texts(self) -> Iterator[str]:
        """Every caption, or question and answer, of the split."""
        for item in range(len(self)):
            payload = self._payload(item)
            if self.kind == "captions":
                yield from payload["captions"]
            else:
                question = self._question(payload, item)
                yield question.question
                yield question.answer


def _texts_by_name(value: Any) -> None:
    """TypeError unless ``value`` is a JSON object of texts."""
    if not isinstance(value, dict):
        raise TypeError("metadata")
    for name, text in value.items():
        _text(name, "metadata")
        _text(text, "metadata")


def _text(value: Any, what: str) -> None:
    """TypeError or ValueError unless ``value`` is a text in valid Unicode: JSON can spell half a character."""
    if not isinstance(value, str):
        raise TypeError(what)
    value.encode()
