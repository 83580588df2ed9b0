"""Building shards: records through parallel workers into tars, written in order, so that the same input gives the same bytes.

A shard is written under a temporary name and renamed together with a note of its rows and records; the index comes last. A
killed build therefore continues behind its last whole shard. A shard whose records have changed since (same ids, other texts
or images: data that was repaired) is written again; records with other ids are other data, and refused.
"""

import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import groupby, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from m2i2.data.records import ImageRecord, Source
from m2i2.data.shards.encoding import MISSING, Encoded, Encoding, Reject, encode
from m2i2.data.shards.exclusion import Excluding
from m2i2.data.shards.identity import by_shard, identity, keys_digest, records_digest, together
from m2i2.data.shards.split import FORMAT, ITEM, SPLIT_NAME, read_index, read_table
from m2i2.data.shards.storage import INDEX, Shard
from m2i2.data.shards.tar import TarWriter
from m2i2.data.sources.reading import objects, text
from m2i2.errors import M2I2Error
from m2i2.files import WRITING, check_file, read_object, replacing, sha256_of, unfinished, write_text
from m2i2.locking import exclusive

SETTINGS, REJECTS, DOUBTS = "building.json", "rejects.jsonl", "doubts.jsonl"
_LOCK = ".lock.writing"
"""Locked while a build goes on; removed at its end, as everything that only an unfinished build needs."""
_BUILT_IN = ("phantoms",)
"""Sources that their options define wholly: a finished folder need not be compared with them."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""What a tar member and a WebDataset key can be."""
PORTION = 8
"""Records that a worker takes at a time: each hand-over costs about a tenth of an image's encoding."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a build did."""

    splits: dict[str, dict[str, int]]
    rejects: int
    reasons: dict[str, int]
    left_out: dict[str, int]
    notes: dict[str, int]
    doubts: int
    """Pictures that may be wrong; they are listed in doubts.jsonl."""
    resumed_shards: int
    complete_before: bool = False


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

    Images that an `Excluding` source names are left out and counted. ``options`` describe the source (they become part of the
    index). ``progress`` is called with the samples and rejects so far.
    M2I2Error for an output folder with other content, for a key that comes twice, for more than ``max_rejects`` (share) of
    rejected records, which are listed in rejects.jsonl, and where the folder cannot be written.
    """
    if samples_per_shard < 1 or workers < 1:
        raise M2I2Error(f"--samples-per-shard {samples_per_shard} and --workers {workers} must be at least 1.")
    if not 0 <= max_rejects <= 1:
        raise M2I2Error(f"--max-rejects {max_rejects} is a share and must lie between 0 and 1.")
    settings = {
        "format": FORMAT,
        "source": source.name,
        "kind": source.kind,
        "options": {k: str(v) for k, v in sorted(options.items())},
        "encoding": asdict(encoding),
        "samples_per_shard": samples_per_shard,
    }
    try:
        _make(output)
        with exclusive(output / _LOCK, f"A build of {output}"):
            if (finished := _claim(output, settings, source)) is not None:
                return finished
            return _build(source, output, encoding, settings, workers, max_rejects, progress)
    except OSError as e:
        raise M2I2Error(
            f"Building {output} failed: {e}. Finished shards stay; fix the cause and run the same command again."
        ) from e


def _build(
    source: Source,
    output: Path,
    encoding: Encoding,
    settings: dict[str, Any],
    workers: int,
    max_rejects: float,
    progress: Callable[[int, int], None],
) -> Report:
    excluded = source.excluded if isinstance(source, Excluding) else {}
    builder = _Builder(output, settings["samples_per_shard"], excluded)
    total = questions = 0
    for record, outcome in _encoded(source, encoding, workers, builder):
        total += 1
        questions += len(record.questions) + len(record.passed_over)
        builder.add(record, outcome)
        progress(total, len(builder.rejects))
    builder.end_split()
    rejects = builder.rejects
    write_text(output / REJECTS, "".join(json.dumps(asdict(r)) + "\n" for r in rejects))
    if builder.doubts:
        write_text(output / DOUBTS, "".join(json.dumps(doubt) + "\n" for doubt in builder.doubts))
    reasons = Counter(_without_key(r) for r in rejects)
    lost = sum(not reject.question for reject in rejects)
    left_out, notes = Counter(source.left_out), source.notes + builder.remarks
    if isinstance(source, Excluding):
        notes += source.missed(builder.excluded)
        left_out["excluded by the audit"] = builder.excluded.total()
    if total == lost + builder.excluded.total():
        first = "".join(f" ({count} x {reason})" for reason, count in reasons.most_common(1))
        raise M2I2Error(
            f"Of {total} records of {source.name} none became a sample{first}; see {output / REJECTS}.{_advice(rejects)}"
        )
    if lost > max_rejects * total or len(rejects) - lost > max_rejects * questions:
        first = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        also = f" and {len(rejects) - lost} of {questions} questions" if len(rejects) > lost else ""
        raise M2I2Error(
            f"{lost} of {total} records{also} were rejected, more than --max-rejects {max_rejects:g} allows ({first}). "
            f"They are listed in {output / REJECTS}. Fix the data, or raise --max-rejects; no index was written."
            f"{_advice(rejects)}"
        )
    if builder.samples().get("train") == 0:
        raise M2I2Error(
            f"All records of the split train were rejected or excluded, so that there is nothing to train on; rejects are in "
            f"{output / REJECTS}. Correct them, or leave them out; no index was written."
        )
    index: dict[str, Any] = {
        **settings,
        "splits": builder.splits(),
        "rejects": len(rejects),
        "doubts": len(builder.doubts),
        "left_out": dict(sorted(left_out.items())),
        "notes": dict(sorted(notes.items())),
    }
    content = {name: [s["sha256"] for s in split["shards"]] for name, split in index["splits"].items()}
    index["fingerprint"] = hashlib.sha256(json.dumps([source.kind, content], sort_keys=True).encode()).hexdigest()[:32]
    write_text(output / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    _tidy(output)
    return Report(
        splits=_counts(index),
        rejects=len(rejects),
        reasons=dict(reasons),
        left_out=index["left_out"],
        notes=index["notes"],
        doubts=len(builder.doubts),
        resumed_shards=builder.resumed,
    )


def _advice(rejects: list[Reject]) -> str:
    """Where images were looked for that are not there."""
    file = next((reject.file for reject in rejects if reject.reason == MISSING), "")
    return (
        f" An image was looked for at {file}: is that its place? --image-root names the folder where paths start." if file else ""
    )


def _without_key(reject: Reject) -> str:
    """The reason with "..." for the record's key, where that is the name of the file: behind "The image" or "The DICOM file"."""
    return re.sub(rf"^(The (?:\S+ ){{1,2}}){re.escape(reject.key)} ", r"\1... ", reject.reason)


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise M2I2Error(f"Cannot use {output} as --output: {e}.") from e


def _tidy(output: Path) -> None:
    """Remove what only an unfinished build needs."""
    for pattern in ("*.rows.npy", "*.note.json", f".*{WRITING}"):
        for path in output.glob(pattern):
            if path.name != _LOCK:
                path.unlink()


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


def _claim(output: Path, settings: dict[str, Any], source: Source) -> Report | None:
    """Make ``output`` ours, or continue there; the report of a build that is complete already, else None."""
    path = output / SETTINGS
    try:
        if path.exists():
            if read_object(path, "settings of the build") != json.loads(json.dumps(settings)):
                raise M2I2Error(
                    f"{output} was begun from another source or with other settings ({SETTINGS} there names them); "
                    f"repeat those, choose another --output, or delete the folder."
                )
            if (output / INDEX).exists():
                return _finished(output, read_index(output), settings, source)
        elif any(not found.name.endswith(WRITING) for found in output.iterdir()):
            raise M2I2Error(f"{output} holds other data; choose an empty or new folder as --output.")
        else:
            write_text(path, json.dumps(settings, indent=1) + "\n")
    except M2I2Error:
        raise
    except (OSError, ValueError) as e:
        raise M2I2Error(f"Cannot use {output} as --output: {e}.") from e
    return None


def _finished(output: Path, index: dict[str, Any], settings: dict[str, Any], source: Source) -> Report:
    """The report of a finished folder; M2I2Error where ``source`` is not, or no longer, the data that it holds."""
    for field, kind in (("rejects", int), ("left_out", dict)):
        if not isinstance(index.get(field), kind):
            raise M2I2Error(f"{output / INDEX} is damaged: it has no {field}. Delete the folder and build it again.")
    known = {name: split.get("records_sha256") for name, split in index["splits"].items()}
    if source.name not in _BUILT_IN and None not in known.values():
        rejected: dict[str, set[str]] = {}
        for number, reject in objects(output / REJECTS):
            if reject.get("question"):
                continue
            key, split = (text(reject, field, output / REJECTS, number) for field in ("key", "split"))
            rejected.setdefault(split, set()).add(key)
        digests: dict[str, list[bytes]] = {}
        for split, _, records in by_shard(source, settings["samples_per_shard"]):
            digest = records_digest(list(records), rejected.get(split, set()))
            digests.setdefault(split, []).append(bytes.fromhex(digest))
        if {split: together(parts) for split, parts in digests.items()} != known:
            raise M2I2Error(
                f"{output} is complete, but holds other data than {source.name} gives now: another data set, or this one "
                f"before it changed. Choose another --output, or delete the folder to build it again."
            )
    _tidy(output)
    return Report(
        splits=_counts(index),
        rejects=index["rejects"],
        reasons={},
        left_out=index["left_out"],
        notes=index.get("notes", {}),
        doubts=index.get("doubts", 0),
        resumed_shards=0,
        complete_before=True,
    )


def _encoded(
    source: Source, encoding: Encoding, workers: int, builder: "_Builder"
) -> Iterator[tuple[ImageRecord, Encoded | Reject | None]]:
    """Records with their encoding, in the source's order; None for those whose shard was finished by an earlier run."""

    def planned() -> Iterator[tuple[ImageRecord, bool]]:
        for split, number, records in by_shard(source, builder.samples_per_shard):
            if builder.note(split, number) is None:
                yield from ((record, False) for record in records)
            else:
                held = list(records)
                keep = builder.keeps(split, number, held)
                yield from ((record, keep) for record in held)

    if workers <= 1:
        for record, written in planned():
            yield record, None if written else encode(record, encoding)
        return
    waiting: deque[tuple[list[ImageRecord], Future[list[Encoded | Reject]] | None]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        try:
            for records, written in _in_portions(planned()):
                waiting.append((records, None if written else pool.submit(_encode_all, records, encoding)))
                if len(waiting) > 2 * workers + 1:
                    yield from _next(waiting)
            while waiting:
                yield from _next(waiting)
        except BrokenProcessPool as e:
            raise M2I2Error("A worker process was killed (out of memory?); start again with fewer --workers.") from e
        finally:
            pool.shutdown(cancel_futures=True)


def _in_portions(planned: Iterator[tuple[ImageRecord, bool]]) -> Iterator[tuple[list[ImageRecord], bool]]:
    """Up to `PORTION` records in a row that are all written already, or all not."""
    for written, group in groupby(planned, key=lambda pair: pair[1]):
        records = (record for record, _ in group)
        while portion := list(islice(records, PORTION)):
            yield portion, written


def _encode_all(records: list[ImageRecord], encoding: Encoding) -> list[Encoded | Reject]:
    return [encode(record, encoding) for record in records]


def _next(
    waiting: "deque[tuple[list[ImageRecord], Future[list[Encoded | Reject]] | None]]",
) -> "Iterator[tuple[ImageRecord, Encoded | Reject | None]]":
    records, future = waiting.popleft()
    return zip(records, future.result() if future else repeat(None), strict=False)


class _Builder:
    """Cuts the stream into shards. A shard covers ``samples_per_shard`` records of its split, also rejected and excluded ones.

    ``unwanted``: (split, hash of the stored image) of what is not to be stored.
    """

    def __init__(self, output: Path, samples_per_shard: int, unwanted: Mapping[tuple[str, str], str]) -> None:
        self._output, self.samples_per_shard, self._unwanted = output, samples_per_shard, unwanted
        self.excluded: Counter[tuple[str, str]] = Counter()
        self._shard_excluded: list[str] = []
        self._shards: dict[str, list[Shard]] = {}
        self._digests: dict[str, list[bytes]] = {}
        self._records: Counter[str] = Counter()
        self._keys: dict[str, set[str]] = {}
        self._split: str | None = None
        self._tar: TarWriter | None = None
        self._shard_rejects: list[Reject] = []
        self._shard_remarks: Counter[str] = Counter()
        self._shard_doubts: list[dict[str, str]] = []
        self._shard_keys: list[bytes] = []
        self._shard_identities: list[bytes] = []
        self.rejects: list[Reject] = []
        self.remarks: Counter[str] = Counter()
        self.doubts: list[dict[str, str]] = []
        self.resumed = 0

    def _stem(self, split: str, number: int) -> str:
        return f"{split}-{number:06d}"

    def note(self, split: str, number: int) -> dict[str, Any] | None:
        """What an earlier run noted about a shard that it finished; None where it did not, or the files are not whole."""
        stem = self._stem(split, number)
        try:
            note = read_object(self._output / f"{stem}.note.json", "note of a shard")
            shard, rejects = Shard(**note["shard"]), [Reject(**reject) for reject in note["rejects"]]
            read_table(self._output / f"{stem}.rows.npy", shard.items)
            whole = shard.file == f"{stem}.tar" and check_file(self._output / shard.file) == shard.bytes
            texts = [note["keys"], *note.get("excluded", []), *(value for reject in rejects for value in asdict(reject).values())]
            whole = whole and len(bytes.fromhex(note["records"])) == 32 and all(isinstance(text, str) for text in texts)
            return note if whole and "remarks" in note else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keeps(self, split: str, number: int, records: list[ImageRecord]) -> bool:
        """Whether the finished shard holds these records as they are now; M2I2Error where it holds those of other data."""
        note = self.note(split, number)
        assert note is not None
        if note["records"] == records_digest(records, {reject["key"] for reject in note["rejects"] if not reject.get("question")}):
            return True
        if note["keys"] == keys_digest(records):
            (self._output / f"{self._stem(split, number)}.note.json").unlink()
            return False
        raise M2I2Error(
            f"{self._output / self._stem(split, number)}.tar was built from other data: its ids are not those of the source "
            f"now. Choose another --output, or delete the folder."
        )

    def add(self, record: ImageRecord, outcome: Encoded | Reject | None) -> None:
        """The next record in order."""
        if self._split is not None and record.split != self._split:
            self.end_split()
        if record.split in self._shards and self._split is None:
            raise M2I2Error(f"The source gives the split {record.split} in two pieces; its records must follow each other.")
        self._split = record.split
        if not _KEY.fullmatch(record.key) or not SPLIT_NAME.fullmatch(record.split):
            raise M2I2Error(
                f"The record {record.key!r} of the split {record.split!r} needs a key of at most 90 letters, digits, _ and -, "
                f"and a split name of small letters, digits and _. Rename the image or the split."
            )
        keys = self._keys.setdefault(record.split, set())
        if record.key in keys:
            raise M2I2Error(f"The id {record.key!r} comes twice in the split {record.split}; ids must be unique.")
        keys.add(record.key)
        number, place = divmod(self._records[record.split], self.samples_per_shard)
        if place == 0:
            self._end_shard()
            if outcome is None:
                self._take_over(record.split, number)
            else:
                path = self._output / f"{self._stem(record.split, number)}.tar"
                for left in self._output.glob(f".{path.name}.*{WRITING}"):  # by a killed build
                    left.unlink()
                self._tar = TarWriter(unfinished(path), number)
        self._records[record.split] += 1
        if outcome is None:
            return
        self._shard_keys.append(record.key.encode() + b"\n")
        self._shard_identities.append(identity(record, isinstance(outcome, Reject)))
        file = str(record.image) if isinstance(record.image, Path) else ""
        self._shard_rejects += [Reject(record.key, record.split, why, file, question) for question, why in record.passed_over]
        if isinstance(outcome, Reject):
            self._shard_rejects.append(outcome)
        elif (record.split, outcome.image_sha256) in self._unwanted:
            self._shard_excluded.append(outcome.image_sha256)
        else:
            assert self._tar is not None
            self._tar.add(record.key, outcome.ending, outcome.image, outcome.text, outcome.items)
            self._shard_remarks.update(outcome.remarks)
            about = {"key": record.key, "split": record.split, "file": file}
            self._shard_doubts += [{**about, "doubt": doubt} for doubt in outcome.doubts]

    def _take_over(self, split: str, number: int) -> None:
        note = self.note(split, number)
        assert note is not None
        self._digests.setdefault(split, []).append(bytes.fromhex(note["records"]))
        self._shards.setdefault(split, []).append(Shard(**note["shard"]))
        self.rejects += [Reject(**reject) for reject in note["rejects"]]
        self.remarks.update(note["remarks"])
        self.doubts += note.get("doubts", [])
        self.excluded.update((split, sha256) for sha256 in note.get("excluded", []))
        self.resumed += 1

    def _end_shard(self) -> None:
        if self._tar is None or self._split is None:
            return
        shards = self._shards.setdefault(self._split, [])
        stem = self._stem(self._split, len(shards))
        sha256, rows = self._tar.close()
        shard = Shard(f"{stem}.tar", self._tar.samples, len(rows), self._tar.size, sha256)
        os.replace(self._tar.path, self._output / shard.file)
        with replacing(self._output / f"{stem}.rows.npy") as f:
            np.save(f, rows)
        records = together(self._shard_identities)
        note = {
            "shard": asdict(shard),
            "records": records,
            "keys": together(self._shard_keys),
            "rejects": [asdict(r) for r in self._shard_rejects],
            "remarks": dict(self._shard_remarks),
            "doubts": self._shard_doubts,
            "excluded": self._shard_excluded,
        }
        write_text(self._output / f"{stem}.note.json", json.dumps(note))
        shards.append(shard)
        self._digests.setdefault(self._split, []).append(bytes.fromhex(records))
        self.rejects += self._shard_rejects
        self.remarks.update(self._shard_remarks)
        self.doubts += self._shard_doubts
        self.excluded.update((self._split, sha256) for sha256 in self._shard_excluded)
        self._shard_remarks, self._shard_doubts, self._shard_excluded = Counter(), [], []
        self._shard_rejects, self._shard_keys, self._shard_identities, self._tar = [], [], [], None

    def end_split(self) -> None:
        """The split's last shard, and its table of items."""
        self._end_shard()
        if self._split is None:
            return
        shards = self._shards[self._split]
        with replacing(self._output / f"{self._split}.items.npy") as f:
            shape = (sum(shard.items for shard in shards),)
            np.lib.format.write_array_header_1_0(
                f, {"descr": np.lib.format.dtype_to_descr(ITEM), "fortran_order": False, "shape": shape}
            )
            for number in range(len(shards)):
                rows = np.load(self._output / f"{self._stem(self._split, number)}.rows.npy", allow_pickle=False)
                f.write(rows.tobytes())
        self._split = None

    def samples(self) -> dict[str, int]:
        """The samples of every split."""
        return {split: sum(shard.samples for shard in shards) for split, shards in self._shards.items()}

    def splits(self) -> dict[str, Any]:
        """The index's account of every split."""
        found = {}
        for split, shards in self._shards.items():
            table = self._output / f"{split}.items.npy"
            digest = sha256_of(table)
            found[split] = {
                "items_sha256": digest,
                "records_sha256": together(self._digests[split]),
                "shards": [asdict(shard) for shard in shards],
            }
        return found
