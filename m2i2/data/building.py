"""Building shards: records through parallel workers into tars, written in order, so that the same input gives the same bytes.

A shard is written under a temporary name and renamed together with a note of its rows; the index comes last. A killed
build therefore continues behind its last whole shard.
"""

import hashlib
import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2i2.data.images import MAX_PIXELS, decode
from m2i2.data.records import ImageRecord, Source
from m2i2.data.shards import FORMAT, INDEX, ITEM, Shard
from m2i2.data.tar import TarWriter
from m2i2.errors import M2I2Error
from m2i2.files import sha256_of, write_text

SETTINGS, REJECTS = "building.json", "rejects.jsonl"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are stored."""

    side: int
    """Longest allowed shorter side, pixels; larger images are scaled down."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    keep_bytes: bool = False
    """Store JPEG and PNG files as they are, after making sure that they decode."""
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.side < 16:
            raise M2I2Error(f"--side {self.side} is too small; choose at least the training resolution, such as 288.")
        if not 1 <= self.quality <= 100:
            raise M2I2Error(f"--quality {self.quality} must lie between 1 and 100.")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a build did."""

    splits: dict[str, dict[str, int]]
    rejects: int
    reasons: dict[str, int]
    left_out: dict[str, int]
    resumed_shards: int
    complete_before: bool = False


@dataclass(frozen=True)
class _Reject:
    key: str
    split: str
    reason: str
    file: str


_Encoded = tuple[str, bytes, bytes, int]
"""Ending, image, text, items."""


def encode(record: ImageRecord, encoding: Encoding) -> _Encoded | _Reject:
    """A record as the bytes of its sample, or why it cannot be one. Runs in the workers.

    An empty answer is no reason: SLAKE's English training set has one (question 1622), and every published count holds it.
    """
    file = str(record.image) if isinstance(record.image, Path) else ""

    def reject(reason: str) -> _Reject:
        return _Reject(record.key, record.split, reason, file)

    texts = record.captions or tuple(q.question for q in record.questions)
    if not texts or not all(text.strip() for text in texts):
        return reject("empty caption" if record.captions else "empty question" if texts else "no text")
    try:
        original = record.image.read_bytes() if isinstance(record.image, Path) else record.image
    except FileNotFoundError:
        return reject("image file missing")
    except OSError as e:
        return reject(f"image file unreadable: {e.strerror}")
    try:
        image = decode(original, record.key, None if encoding.keep_bytes else encoding.side, encoding.max_pixels)
    except M2I2Error as e:
        return reject(str(e))
    ending = {b"\xff\xd8": "jpg", b"\x89P": "png"}.get(original[:2])
    if encoding.keep_bytes and ending:
        stored = original
    else:
        ending = "jpg"
        if min(image.size) > encoding.side:
            scale = encoding.side / min(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=encoding.quality)
        stored = out.getvalue()
    payload: dict[str, Any] = {"key": record.key, "image_sha256": hashlib.sha256(stored).hexdigest()}
    if record.captions:
        payload["captions"] = list(record.captions)
    else:
        payload["questions"] = [asdict(question) | {"metadata": dict(question.metadata)} for question in record.questions]
    payload["metadata"] = dict(record.metadata)
    text = json.dumps(payload, ensure_ascii=False, sort_keys=True).encode()
    return ending, stored, text, max(1, len(record.questions))


def build(
    source: Source,
    output: Path,
    encoding: Encoding,
    *,
    options: dict[str, Any],
    samples_per_shard: int = 1000,
    workers: int = 1,
    max_rejects: float = 0.01,
    progress: Callable[[int, int], None] = lambda samples, rejects: None,
) -> Report:
    """Write ``source`` to ``output`` and return what was written.

    ``options`` describe the source (they become part of the index). ``progress`` is told the samples and rejects so far.
    M2I2Error for an output folder with other content, for a key that comes twice, and for more than ``max_rejects``
    (share) of rejected records, which are listed in rejects.jsonl.
    """
    settings = {
        "format": FORMAT,
        "source": source.name,
        "kind": source.kind,
        "options": {k: str(v) for k, v in sorted(options.items())},
        "encoding": asdict(encoding),
        "samples_per_shard": samples_per_shard,
    }
    finished = _claim(output, settings)
    if finished is not None:
        return finished
    builder = _Builder(output, samples_per_shard)
    total = 0
    for record, outcome in _encoded(source, encoding, workers, builder.is_written):
        total += 1
        builder.add(record, outcome)
        progress(total, len(builder.rejects))
    builder.end_split()
    rejects = builder.rejects
    write_text(output / REJECTS, "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejects))
    reasons = Counter(r.reason.replace(r.key, "...") for r in rejects)
    if total == 0 or total == len(rejects):
        raise M2I2Error(f"Of {total} records of {source.name} none became a sample; see {output / REJECTS}.")
    if len(rejects) > max_rejects * total:
        first = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise M2I2Error(
            f"{len(rejects)} of {total} records were rejected, more than --max-rejects {max_rejects:g} allows ({first}). "
            f"They are listed in {output / REJECTS}. Mend the data, or raise --max-rejects; no index was written."
        )
    index: dict[str, Any] = {
        **settings,
        "splits": builder.splits(),
        "rejects": len(rejects),
        "left_out": dict(sorted(source.left_out.items())),
    }
    content = {name: [s["sha256"] for s in split["shards"]] for name, split in index["splits"].items()}
    index["fingerprint"] = hashlib.sha256(json.dumps([source.kind, content], sort_keys=True).encode()).hexdigest()[:32]
    write_text(output / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    for note in output.glob("*.rows.npy"):
        note.unlink()
    for note in output.glob("*.note.json"):
        note.unlink()
    return Report(
        splits=_counts(index),
        rejects=len(rejects),
        reasons=dict(reasons),
        left_out=index["left_out"],
        resumed_shards=builder.resumed,
    )


def _counts(index: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {
        name: {
            "samples": sum(s["samples"] for s in split["shards"]),
            "items": sum(s["items"] for s in split["shards"]),
            "shards": len(split["shards"]),
            "bytes": sum(s["bytes"] for s in split["shards"]),
        }
        for name, split in index["splits"].items()
    }


def _claim(output: Path, settings: dict[str, Any]) -> Report | None:
    """Make ``output`` ours, or continue there; the report of a build that is complete already, else None."""
    path = output / SETTINGS
    try:
        output.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if json.loads(path.read_text()) != json.loads(json.dumps(settings)):
                raise M2I2Error(
                    f"{output} was begun from another source or with other settings ({SETTINGS} there names them); "
                    f"repeat those, choose another --output, or delete the folder."
                )
            if (output / INDEX).exists():
                index = json.loads((output / INDEX).read_text())
                return Report(
                    splits=_counts(index),
                    rejects=index["rejects"],
                    reasons={},
                    left_out=index["left_out"],
                    resumed_shards=0,
                    complete_before=True,
                )
        elif any(output.iterdir()):
            raise M2I2Error(f"{output} holds other data; choose an empty or new folder as --output.")
        else:
            write_text(path, json.dumps(settings, indent=1) + "\n")
    except (OSError, ValueError) as e:
        raise M2I2Error(f"Cannot use {output} as --output: {e}.") from e
    return None


def _encoded(
    source: Source, encoding: Encoding, workers: int, is_written: Callable[[str, int], bool]
) -> Iterator[tuple[ImageRecord, _Encoded | _Reject | None]]:
    """Records with their encoding, in the source's order; None for those whose shard was finished by an earlier run."""
    numbers: Counter[str] = Counter()

    def numbered() -> Iterator[tuple[ImageRecord, bool]]:
        for record in source:
            yield record, is_written(record.split, numbers[record.split])
            numbers[record.split] += 1

    if workers <= 1:
        for record, written in numbered():
            yield record, None if written else encode(record, encoding)
        return
    waiting: deque[tuple[ImageRecord, Future[_Encoded | _Reject] | None]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        try:
            for record, written in numbered():
                waiting.append((record, None if written else pool.submit(encode, record, encoding)))
                if len(waiting) >= 16 * workers:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool as e:
            raise M2I2Error("A worker process was killed (out of memory?); start again with fewer --workers.") from e
        finally:
            pool.shutdown(cancel_futures=True)


def _next(
    waiting: "deque[tuple[ImageRecord, Future[_Encoded | _Reject] | None]]",
) -> tuple[ImageRecord, _Encoded | _Reject | None]:
    record, future = waiting.popleft()
    return record, future.result() if future else None


class _Builder:
    """Cuts the stream into shards. A shard covers ``samples_per_shard`` records of its split, rejected ones included."""

    def __init__(self, output: Path, samples_per_shard: int) -> None:
        self._output, self._per_shard = output, samples_per_shard
        self._shards: dict[str, list[Shard]] = {}
        self._records: Counter[str] = Counter()
        self._keys: dict[str, set[str]] = {}
        self._split: str | None = None
        self._tar: TarWriter | None = None
        self._shard_rejects: list[_Reject] = []
        self.rejects: list[_Reject] = []
        self.resumed = 0

    def _stem(self, split: str, number: int) -> str:
        return f"{split}-{number:06d}"

    def is_written(self, split: str, record: int) -> bool:
        """Whether the shard that holds this record of the split was finished by an earlier run."""
        return (self._output / f"{self._stem(split, record // self._per_shard)}.note.json").exists()

    def add(self, record: ImageRecord, outcome: _Encoded | _Reject | None) -> None:
        """The next record in order."""
        if self._split is not None and record.split != self._split:
            self.end_split()
        if record.split in self._shards and self._split is None:
            raise M2I2Error(f"The source gives the split {record.split} in two pieces; its records must follow each other.")
        self._split = record.split
        if not record.key or not set(record.split) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise M2I2Error(f"The record {record.key!r} of the split {record.split!r} needs a key and a plain split name.")
        keys = self._keys.setdefault(record.split, set())
        if record.key in keys:
            raise M2I2Error(f"The id {record.key!r} comes twice in the split {record.split}; ids must be unique.")
        keys.add(record.key)
        number, place = divmod(self._records[record.split], self._per_shard)
        if place == 0:
            self._end_shard()
            if outcome is None:
                self._take_over(record.split, number)
            else:
                path = self._output / f".{self._stem(record.split, number)}.tar.writing"
                self._tar = TarWriter(path, number)
        self._records[record.split] += 1
        if isinstance(outcome, _Reject):
            self._shard_rejects.append(outcome)
        elif outcome is not None:
            assert self._tar is not None
            ending, image, text, items = outcome
            self._tar.add(record.key, ending, image, text, items)

    def _take_over(self, split: str, number: int) -> None:
        note = json.loads((self._output / f"{self._stem(split, number)}.note.json").read_text())
        self._shards.setdefault(split, []).append(Shard(**note["shard"]))
        self.rejects += [_Reject(**reject) for reject in note["rejects"]]
        self.resumed += 1

    def _end_shard(self) -> None:
        if self._tar is None or self._split is None:
            return
        shards = self._shards.setdefault(self._split, [])
        stem = self._stem(self._split, len(shards))
        sha256, rows = self._tar.close()
        shard = Shard(f"{stem}.tar", self._tar.samples, len(rows), self._tar.size, sha256)
        os.replace(self._output / f".{stem}.tar.writing", self._output / shard.file)
        with (self._output / f".{stem}.rows.writing").open("wb") as f:
            np.save(f, rows)
        os.replace(self._output / f".{stem}.rows.writing", self._output / f"{stem}.rows.npy")
        note = {"shard": asdict(shard), "rejects": [asdict(r) for r in self._shard_rejects]}
        write_text(self._output / f"{stem}.note.json", json.dumps(note))
        shards.append(shard)
        self.rejects += self._shard_rejects
        self._shard_rejects, self._tar = [], None

    def end_split(self) -> None:
        """The split's last shard, and its table of items."""
        self._end_shard()
        if self._split is None:
            return
        stems = [self._stem(self._split, i) for i in range(len(self._shards[self._split]))]
        tables = [np.load(self._output / f"{stem}.rows.npy", allow_pickle=False) for stem in stems]
        temporary = self._output / f".{self._split}.items.writing"
        with temporary.open("wb") as f:
            np.save(f, np.concatenate(tables) if tables else np.empty(0, ITEM))
        os.replace(temporary, self._output / f"{self._split}.items.npy")
        self._split = None

    def splits(self) -> dict[str, Any]:
        """The index's account of every split."""
        found = {}
        for split, shards in self._shards.items():
            table = self._output / f"{split}.items.npy"
            digest = sha256_of(table)
            found[split] = {"items_sha256": digest, "shards": [asdict(shard) for shard in shards]}
        return found
