"""Shards: WebDataset tars that the stock library reads, with an index that finds any item by its number.

A folder holds one data set: ``{split}-000000.tar`` ... of samples ``{key}.jpg|png`` + ``{key}.json``, ``{split}.items.npy``
with one row an item (a caption record, or one question), and ``index.json``. Opening costs the number of shards, not of
items: the table of items is mapped, not read.
"""

import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2i2.data.records import KINDS, Kind, Question
from m2i2.errors import M2I2Error

INDEX = "index.json"
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
MAX_MEMBER = 1 << 30
"""No image or text is larger than this many bytes."""


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


@dataclass(frozen=True)
class Shard:
    """A tar of the index."""

    file: str
    samples: int
    items: int
    bytes: int
    sha256: str


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a shard folder, its shape checked; M2I2Error where there is none or it is not one of ours."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise M2I2Error(f"{path} has format {index['format']!r}, this version reads {FORMAT}; build the shards again.")
        if index["kind"] not in KINDS or not isinstance(index["fingerprint"], str):
            raise ValueError(f"kind {index['kind']!r}")
        for name, split in index["splits"].items():
            if not SPLIT_NAME.fullmatch(name):
                raise M2I2Error(f"{path} has a split {name!r:.80}, which is no name of a split; build the shards again.")
            if not isinstance(split["shards"], list) or not isinstance(split["items_sha256"], str):
                raise TypeError(f"split {name}")
            for row in split["shards"]:
                shard = Shard(**row)
                if Path(shard.file).name != shard.file or not shard.file.endswith(".tar") or "\0" in shard.file:
                    raise M2I2Error(f"{path} names a shard outside its folder: {shard.file!r:.80}; build the shards again.")
                sizes = (shard.samples, shard.items, shard.bytes)
                if not all(type(n) is int and 0 <= n < 1 << 53 for n in sizes) or not isinstance(shard.sha256, str):
                    raise ValueError(f"sizes of {shard.file}")
    except FileNotFoundError as e:
        what = "was not finished" if folder.is_dir() and any(folder.iterdir()) else "holds no shards"
        raise M2I2Error(f"{folder} has no {INDEX}: it {what}; run tools/make_shards.py with it as --output.") from e
    except M2I2Error:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise M2I2Error(f"{path} is damaged ({type(e).__name__}: {e}); build the shards again.") from e
    return index


class ShardSplit:
    """One split of a shard folder, read by item number. Open files are cached per process; it may be pickled and forked."""

    def __init__(self, directory: Path, name: str, index: Mapping[str, Any]) -> None:
        self.directory, self.name = directory, name
        self.kind: Kind = index["kind"]
        split = index["splits"][name]
        self.fingerprint = str(index["fingerprint"])
        self.shards = [Shard(**row) for row in split["shards"]]
        self.shard_items: NDArray[np.int64] = np.array([shard.items for shard in self.shards], dtype=np.int64)
        self._table = directory / f"{name}.items.npy"
        self._check_files()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._pid = os.getpid()

    @classmethod
    def open(cls, directory: Path, split: str, kind: Kind) -> "ShardSplit":
        """M2I2Error for a folder without finished shards, shards of the other kind, or a split that is not there."""
        index = read_index(directory)
        if index["kind"] != kind:
            stage = "pretraining" if kind == "captions" else "finetuning and evaluation"
            raise M2I2Error(f"{directory} holds {index['kind']} shards; {stage} needs {kind}.")
        if split not in index["splits"]:
            raise M2I2Error(f"{directory} has no split {split!r}; it has {', '.join(index['splits'])}.")
        return cls(directory, split, index)

    def _check_files(self) -> None:
        for shard in self.shards:
            path = self.directory / shard.file
            try:
                size = path.stat().st_size
            except OSError as e:
                raise M2I2Error(f"The shard {path} of the index cannot be read: {e.strerror}. Copy it again.") from e
            if size != shard.bytes:
                raise M2I2Error(
                    f"The shard {path} has {size} bytes, the index says {shard.bytes}: it is truncated or the index is "
                    f"stale. Copy the folder again, or build the shards again."
                )
        try:
            table = np.load(self._table, mmap_mode="r", allow_pickle=False)
            if not isinstance(table, np.memmap) or self._table.stat().st_size != table.offset + table.nbytes:
                raise ValueError("it is no table, or its size is not the one in its header")
        except Exception as e:  # numpy's reader raises almost anything on damaged headers
            raise M2I2Error(f"The table of items {self._table} cannot be read ({e}); build the shards again.") from e
        self.items: NDArray[np.void] = table
        if self.items.dtype != ITEM or self.items.shape != (int(self.shard_items.sum()),):
            raise M2I2Error(
                f"{self._table} has {self.items.shape} rows of {self.items.dtype}, the index says "
                f"{int(self.shard_items.sum())} items: they do not belong together. Build the shards again."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"], state["name"], read_index(state["directory"]))  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, item: int) -> Sample:
        """The item with this number; M2I2Error names the shard where its bytes are not what the index promises."""
        row = self.items[item]
        image = self._bytes(row, "image")
        payload = self._payload(item)
        return Sample(
            payload["key"],
            image,
            payload["image_sha256"],
            tuple(payload.get("captions", ())),
            self._question(payload, item) if self.kind == "vqa" else None,
            payload["metadata"],
            self.shards[int(row["shard"])].file,
        )

    def _payload(self, item: int) -> dict[str, Any]:
        """The text of the item's sample, its fields checked."""
        text = self._bytes(self.items[item], "text")
        try:
            payload: dict[str, Any] = json.loads(text)
            for field in ("key", "image_sha256"):
                if not isinstance(payload[field], str):
                    raise TypeError(field)
            _texts_by_name(payload["metadata"])
            content = payload["captions" if self.kind == "captions" else "questions"]
            if not isinstance(content, list) or not content:
                raise TypeError("no captions or questions")
            if self.kind == "captions" and not all(isinstance(caption, str) for caption in content):
                raise TypeError("captions")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise self._damaged(item, e) from e
        return payload

    def _question(self, payload: dict[str, Any], item: int) -> Question:
        try:
            question = Question(**payload["questions"][int(self.items[item]["part"])])
            texts = (question.id, question.question, question.answer)
            if not all(isinstance(text, str) for text in texts) or not isinstance(question.closed, bool):
                raise TypeError("question")
            _texts_by_name(question.metadata)
        except (TypeError, IndexError) as e:
            raise self._damaged(item, e) from e
        return question

    def _damaged(self, item: int, e: Exception) -> M2I2Error:
        file = self.directory / self.shards[int(self.items[item]["shard"])].file
        return M2I2Error(
            f"Item {item} of {file} has a damaged text ({type(e).__name__}: {e}); "
            f"check the folder with tools/make_shards.py verify {self.directory}."
        )

    def _bytes(self, row: Any, which: str) -> bytes:
        """The image or the text of a row of the table."""
        shard, offset, size = int(row["shard"]), int(row[f"{which}_offset"]), int(row[f"{which}_size"])
        if shard >= len(self.shards) or size > MAX_MEMBER or offset + size > self.shards[shard].bytes:
            raise M2I2Error(
                f"{self._table} points outside its shards (shard {shard}, offset {offset}, {size} bytes); build them again."
            )
        path = self.directory / self.shards[shard].file
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as e:
            raise M2I2Error(f"Reading {path} failed: {e.strerror}.") from e
        if len(data) != size:
            raise M2I2Error(f"{path} ends before offset {offset + size}: it is truncated. Copy it again.")
        if zlib.crc32(data) != int(row[f"{which}_crc32"]):
            raise M2I2Error(f"{path} holds damaged bytes at offset {offset} (the {which} of a sample). Copy it again.")
        return data

    def _file(self, shard: int) -> int:
        if self._pid != os.getpid():  # a forked worker opens its own
            self._files, self._pid = OrderedDict(), os.getpid()
        if shard not in self._files:
            if len(self._files) >= 64:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.directory / self.shards[shard].file, os.O_RDONLY)
        self._files.move_to_end(shard)
        return self._files[shard]

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
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("metadata")
