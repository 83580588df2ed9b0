"""``tools/make_shards.py``: data sets into shards, and shards checked."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from m2i2.cli.settings import add_store_options
from m2i2.config import CacheConfig
from m2i2.data.images.decoding import MAX_PIXELS
from m2i2.data.records import Kind
from m2i2.data.shards.building import Encoding, Report, build
from m2i2.data.shards.exclusion import Excluding
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import read_index
from m2i2.data.shards.verification import verify
from m2i2.data.sources import SOURCES, open_source
from m2i2.exits import EXIT_USER_ERROR, guarded
from m2i2.terminal import say

_SIDES = {"captions": 288, "vqa": 480}
_OPTIONS = ("image_root", "columns", "projections", "language", "split", "count", "seed", "protocol", "selection")


def _sources_text(kind: Kind) -> str:
    entries = [(name, entry) for (k, name), entry in SOURCES.items() if k == kind]
    return "sources:\n" + "\n".join(f"  {name:<9} {entry.about}\n            {entry.example}" for name, entry in entries)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="make_shards.py",
        description="Turn a data set into shards (WebDataset tars with an index), or check shards.",
        epilog="A killed build continues when the same command is given again. The same input and settings give the same\n"
        "bytes, whatever the number of workers.",
        formatter_class=raw,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="captions|vqa|verify")
    for kind, about in (("captions", "image-caption pairs, for pretraining"), ("vqa", "questions, for finetuning")):
        texts: dict[str, Any] = {"help": about, "description": about, "epilog": _sources_text(kind)}  # type: ignore[arg-type]
        one = commands.add_parser(kind, formatter_class=raw, allow_abbrev=False, **texts)
        add = one.add_argument
        add("source", metavar="SOURCE", help="which data set; see below")
        add("path", metavar="PATH", nargs="?", type=Path, help="where it lies")
        add("--output", type=Path, required=True, metavar="DIR", help="a new folder, or that of a killed build")
        add("--side", type=int, default=_SIDES[kind], help="scale larger images down to this shorter side (%(default)s)")
        add("--quality", type=int, default=90, help="JPEG quality (%(default)s)")
        add("--keep-bytes", action="store_true", help="store JPEG and PNG files untouched instead")
        add("--samples-per-shard", type=int, default=1000, metavar="N", help="images per shard (%(default)s)")
        add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s: all cores)")
        add("--max-rejects", type=float, default=0.01, metavar="SHARE", help="fail beyond this share (%(default)s)")
        add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="reject larger images (%(default)s)")
        add("--exclude", type=Path, metavar="AUDIT", help="leave out the images that audit.json of audit_leakage.py lists")
        add("--image-root", type=Path, metavar="DIR", help="where image paths start (json, parquet, datasets, vqa-rad)")
        add("--columns", metavar="OURS=THEIRS,...", help="other names of columns, e.g. caption=findings (json, parquet, datasets)")
        add("--projections", choices=["frontal", "lateral", "all"], help="which images (iu-xray; all)")
        add("--language", choices=["en", "zh", "all"], help="which questions (slake; en)")
        add("--split", metavar="NAME", help="split of records that name none (json, datasets; train)")
        add("--count", type=int, metavar="N", help="how many images to generate (phantoms)")
        add("--seed", type=int, help="which ones (phantoms; 0)")
        add("--protocol", choices=["paper", "clean"], help="whose training questions (vqa-text; clean)")
        add("--selection", type=float, metavar="SHARE", help="as in finetuning: answering.selection (vqa-text; 0.1)")
    check = commands.add_parser("verify", help="check every hash and every member of a folder of shards", allow_abbrev=False)
    check.add_argument("folder", metavar="DIR", help="the folder, or its URL (s3://, https://)")
    add_store_options(check)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for bad input and for shards with faults, 1 for a fault of ours."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _verify(arguments) if arguments.command == "verify" else _build(arguments))


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # It draws only when it is told to: a thread that draws would be copied, holding its lock, into the forked workers.
    return Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False)


def _build(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    source = open_source(arguments.command, arguments.source, arguments.path, **options)
    encoding = Encoding(
        side=arguments.side,
        quality=arguments.quality,
        keep_bytes=arguments.keep_bytes,
        max_pixels=arguments.max_pixels,
    )
    if arguments.exclude:
        source = excluding = Excluding(source, arguments.exclude, asdict(encoding))
        options["exclude"] = excluding.digest
    console, started = Console(stderr=True), time.monotonic()
    with _progress(console) as bar:
        task = bar.add_task("starting")
        drawn = started

        def tell(samples: int, rejects: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            text = f"{samples} images, {rejects} rejected, {samples / (now - started):.0f} a second"
            if due := now - drawn > 0.1:
                drawn = now
            bar.update(task, description=text, refresh=due)
            if not console.is_terminal and samples % 1000 == 0:
                say(text, file=sys.stderr, flush=True)

        report = build(
            source,
            arguments.output,
            encoding,
            options=options,
            samples_per_shard=arguments.samples_per_shard,
            workers=arguments.workers,
            max_rejects=arguments.max_rejects,
            progress=tell,
        )
    _tell(report, arguments.output, time.monotonic() - started)
    return 0


def _tell(report: Report, output: Path, seconds: float) -> None:
    if report.complete_before:
        say(f"{output} is complete already:")
    for split, counts in report.splits.items():
        say(
            f"{split}: {counts['samples']} images, {counts['items']} items, {counts['shards']} shard(s), "
            f"{counts['bytes'] / 1e6:.1f} MB"
        )
    for reason, count in report.left_out.items():
        say(f"left out: {count} x {reason}")
    for note, count in report.notes.items():
        say(f"note: {count} x {note}")
    for reason, count in report.reasons.items():
        say(f"rejected: {count} x {reason} (listed in {output / 'rejects.jsonl'})")
    if report.doubts:
        say(f"look at {report.doubts} images or captions that may be wrong; they are listed in {output / 'doubts.jsonl'}")
    if report.resumed_shards:
        say(f"{report.resumed_shards} shard(s) were there from an earlier run.")
    if not report.complete_before:
        say(f"{output} written in {seconds:.1f} s.")


def _verify(arguments: argparse.Namespace) -> int:
    console, place = Console(stderr=True), arguments.folder
    with TemporaryDirectory(prefix="m2i2-verify-") as folder, _progress(console) as bar:
        # an empty cache: what the URL gives now is checked
        hosts, metadata = tuple(arguments.cache_hosts), arguments.cache_metadata
        shards = storage_of(place, CacheConfig(cache_folder=folder, cache_hosts=hosts, cache_metadata=metadata))
        index = read_index(shards)
        task = bar.add_task("starting")
        faults = verify(shards, index, lambda file: bar.update(task, description=file, refresh=True))
    for fault in faults:
        say(f"fault: {fault}", file=sys.stderr)
    count = sum(len(split["shards"]) for split in index["splits"].values())
    if faults:
        say(f"error: {place} has {len(faults)} fault(s) in {count} shard(s); build or copy it again.", file=sys.stderr)
        return EXIT_USER_ERROR
    say(f"{place}: {count} shard(s), every hash and member in order.")
    return 0
