"""Building shards: records through parallel workers into tars, written in order, so that the same input gives the same bytes.

A shard is written under a temporary name and renamed together with a note of its rows and records; the index comes last. A
killed build therefore continues behind its last whole shard. A shard whose records have changed since (same ids, other texts
or images: data that was repaired) is written again; records with other ids are other data, and refused.
"""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import groupby, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Source
from m2i2.data.shards.encoding import MISSING, Encoded, Encoding, Reject, encode
from m2i2.data.shards.exclusion import Excluding
from m2i2.data.shards.identity import by_shard, records_digest, together
from m2i2.data.shards.split import FORMAT, read_index
from m2i2.data.shards.storage import INDEX
from m2i2.data.shards.writing import ShardWriter
from m2i2.data.sources.reading import objects, text
from m2i2.errors import M2I2Error
from m2i2.files import WRITING, read_object, write_text
from m2i2.locking import exclusive

SETTINGS, REJECTS, DOUBTS = "building.json", "rejects.jsonl", "doubts.jsonl"
_LOCK = ".lock.writing"
"""Locked while a build goes on; removed at its end, as everything that only an unfinished build needs."""
_BUILT_IN = ("phantoms",)
"""Sources that their options define wholly: a finished folder need not be compared with them."""
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
            try:
                return _build(source, output, encoding, settings, workers, max_rejects, progress)
            except M2I2Error:
                _let_go(output)
                raise
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
    writer = ShardWriter(output, settings["samples_per_shard"], excluded)
    total = questions = 0
    for record, outcome in _encoded(source, encoding, workers, writer):
        total += 1
        questions += len(record.questions) + len(record.passed_over)
        writer.add(record, outcome)
        progress(total, len(writer.rejects))
    writer.end_split()
    rejects = writer.rejects
    write_text(output / REJECTS, "".join(json.dumps(asdict(r)) + "\n" for r in rejects))
    if writer.doubts:
        write_text(output / DOUBTS, "".join(json.dumps(doubt) + "\n" for doubt in writer.doubts))
    reasons = Counter(_without_key(r) for r in rejects)
    lost = sum(not reject.question for reject in rejects)
    left_out, notes = Counter(source.left_out), source.notes + writer.remarks
    if isinstance(source, Excluding):
        notes += source.missed(writer.excluded)
        left_out["excluded by the audit"] = writer.excluded.total()
    if total == lost + writer.excluded.total():
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
    if writer.samples().get("train") == 0:
        raise M2I2Error(
            f"All records of the split train were rejected or excluded, so that there is nothing to train on; rejects are in "
            f"{output / REJECTS}. Correct them, or leave them out; no index was written."
        )
    index: dict[str, Any] = {
        **settings,
        "splits": writer.splits(),
        "rejects": len(rejects),
        "doubts": len(writer.doubts),
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
        doubts=len(writer.doubts),
        resumed_shards=writer.resumed,
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


def _let_go(output: Path) -> None:
    """Forget the settings of a build that failed before its first shard: a corrected command may use the folder."""
    if {path.name for path in output.iterdir()} <= {SETTINGS, _LOCK}:
        (output / SETTINGS).unlink()


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
    source: Source, encoding: Encoding, workers: int, writer: ShardWriter
) -> Iterator[tuple[ImageRecord, Encoded | Reject | None]]:
    """Records with their encoding, in the source's order; None for those whose shard was finished by an earlier run."""

    def planned() -> Iterator[tuple[ImageRecord, bool]]:
        for split, number, records in by_shard(source, writer.samples_per_shard):
            if writer.note(split, number) is None:
                yield from ((record, False) for record in records)
            else:
                held = list(records)
                keep = writer.keeps(split, number, held)
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
