"""``tools/audit_leakage.py``: images that two sets share, rewrites of test questions, and what to leave out of training."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from m2i2.backends.heap import keep_freed_memory
from m2i2.data.loading.clean import clean_parts
from m2i2.data.shards.split import read_index
from m2i2.errors import M2I2Error
from m2i2.evaluation.leakage import SAME, SAME_BY_FEATURES, AuditedSet, Pair, in_pairs, matches, parse_sets, read_set
from m2i2.evaluation.whole_images import CANDIDATE
from m2i2.exits import guarded
from m2i2.files import replacing, write_text
from m2i2.terminal import say

DESCRIPTION = """Compare every two of the given sets of images: the same bytes, the same pixels, near-duplicates (re-encoded,
rescaled, windowed, inverted, mirrored, turned), and images of which a part is the same (cropped, framed, one of several panels).
For question shards it also counts the training questions that rewrite test questions.

Writes audit.json (every pair; `exclude` is what make_shards.py --exclude drops) and pairs.png, a sheet of the pairs. Training
images that a set's own test split holds are reported, and listed in `exclude` for the folders named by --within."""

EXAMPLES = """examples:
  python tools/audit_leakage.py shards/rocov2 shards/iu_xray shards/vqa_rad:test --output audits/pretraining
  python tools/audit_leakage.py shards/vqa_rad --within shards/vqa_rad --output audits/vqa_rad
  python tools/audit_leakage.py shards/slake_en:train shards/slake_zh:test --output audits/slake
  python tools/make_shards.py captions rocov2 data/rocov2 --exclude audits/pretraining/audit.json --output shards/rocov2_clean
"""
_CELL, _SHOWN = 160, 120
_KINDS = {"bytes": "the same bytes", "pixels": "the same pixels", "near": "near-duplicates", "part": "the same in part"}
"""Likenesses from the closest to the least, with their names for people."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 whether or not something was found."""
    parser = argparse.ArgumentParser(
        prog="audit_leakage.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sets", nargs="+", metavar="DIR[:SPLIT]", help="shard folders; without a split, all of theirs")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where audit.json and pairs.png go")
    about = "list the training images that DIR's own test split holds, too; may be given several times"
    parser.add_argument("--within", action="append", type=Path, default=[], metavar="DIR", help=about)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s: all cores)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _audit(arguments.sets, arguments.output, arguments.within, arguments.workers))


def _audit(words: Sequence[str], output: Path, within: Sequence[Path], workers: int) -> int:
    if workers < 1:
        raise M2I2Error(f"--workers {workers} must be at least 1.")
    names = parse_sets(words)
    if unknown := [str(folder) for folder in within if folder not in {name for name, _ in names}]:
        raise M2I2Error(f"--within {' '.join(unknown)} is none of the audited folders; spell it as there.")
    keep_freed_memory()
    console = Console(stderr=True)
    sets = []
    for folder, split in names:
        sets.append(read_set(folder, split, workers))
        say(f"{folder}:{split}: {len(sets[-1].images)} images", file=sys.stderr, flush=True)
    comparisons = list(in_pairs(sets))
    found = []
    for first, second in track(comparisons, "comparing", console=console, disable=not console.is_terminal):
        found.append((first, second, matches(first.images, second.images, workers)))
    audit: dict[str, Any] = {
        "thresholds": {"candidate": CANDIDATE, "same": SAME, "same_by_features": SAME_BY_FEATURES},
        "sets": [_account(one) for one in sets],
        "comparisons": [_comparison(*one) for one in found],
        "questions": {str(folder): dict(clean_parts(folder, 0).counts) for folder in _asked(names)},
        "exclude": _exclude([one for one in found if not _own(*one[:2]) or one[0].folder in within]),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "audit.json", json.dumps(audit, indent=1) + "\n")
    shown = _sheet(found, output / "pairs.png")
    for row in audit["comparisons"]:
        say(f"{row['first']} and {row['second']}: {_tally(row['images'])}")
    for first, second, pairs in found:
        if pairs and _own(first, second) and first.folder not in within:
            say(f"{first.name}: what it shares with {second.split} is not listed to exclude; --within {first.folder} lists it.")
    for folder, counts in audit["questions"].items():
        say(f"{folder}: {counts['rewrites_of_test_questions']} training questions are rewrites of test questions")
    say(f"{len(audit['exclude'])} images to exclude; audit.json and pairs.png ({shown} pairs) written to {output}.")
    return 0


def _asked(names: Sequence[tuple[Path, str]]) -> list[Path]:
    """Folders of questions of which training and test set were given."""
    given = set(names)
    folders = dict.fromkeys(folder for folder, _ in names)
    return [f for f in folders if {(f, "train"), (f, "test")} <= given and read_index(f)["kind"] == "vqa"]


def _account(audited: AuditedSet) -> dict[str, Any]:
    """One entry of audit.json's ``sets``; by fingerprint and encoding `--exclude` knows what it is about."""
    return {
        "name": audited.name,
        "source": audited.source,
        "kind": audited.kind,
        "fingerprint": audited.fingerprint,
        "encoding": audited.encoding,
        "images": len(audited.images),
    }


def _own(first: AuditedSet, second: AuditedSet) -> bool:
    """Whether both are splits of one data set."""
    return first.fingerprint == second.fingerprint


def _comparison(first: AuditedSet, second: AuditedSet, pairs: list[Pair]) -> dict[str, Any]:
    """One entry of audit.json; ``images`` counts the first set's images by the closest likeness that each has."""
    closest: dict[int, str] = {}
    for pair in sorted(pairs, key=lambda pair: list(_KINDS).index(pair.kind)):
        closest.setdefault(pair.first, pair.kind)
    return {
        "first": first.name,
        "second": second.name,
        "images": dict(Counter(closest.values())),
        "pairs": [
            {
                "first": first.images[p.first].key,
                "second": second.images[p.second].key,
                "kind": p.kind,
                "correlation": p.correlation,
                "change": p.change,
            }
            for p in pairs
        ],
    }


def _tally(images: dict[str, int]) -> str:
    if not images:
        return "no image in common"
    return ", ".join(f"{images[kind]} images of the first {text}" for kind, text in _KINDS.items() if kind in images)


def _exclude(found: Sequence[tuple[AuditedSet, AuditedSet, list[Pair]]]) -> list[dict[str, str]]:
    """The images of the first sets that a validation or test set holds too."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for first, second, pairs in found:
        if second.split != "train":
            for pair in pairs:
                image = first.images[pair.first]
                row = {
                    "set": first.name,
                    "fingerprint": first.fingerprint,
                    "kind": first.kind,
                    "split": first.split,
                    "key": image.key,
                    "image_sha256": image.stored_sha256,
                    "because": f"{pair.kind}: {second.images[pair.second].key} of {second.name}",
                }
                rows.setdefault((first.name, image.key), row)
    return [rows[row] for row in sorted(rows)]


def _sheet(found: Sequence[tuple[AuditedSet, AuditedSet, list[Pair]]], path: Path) -> int:
    """Up to 120 pairs side by side, the least certain first; returns how many."""
    rows = [(first, second, pair) for first, second, pairs in found for pair in pairs]
    rows = sorted(rows, key=lambda row: row[2].correlation)[:_SHOWN]
    columns = 4
    height = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (2 * _CELL + 12), max(1, height) * (_CELL + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (first, second, pair) in enumerate(rows):
        x, y = number % columns * (2 * _CELL + 12), number // columns * (_CELL + 30)
        for offset, audited, place in ((0, first, pair.first), (_CELL + 2, second, pair.second)):
            thumbnail = audited.images[place].thumbnail
            sheet.paste(thumbnail.convert("RGB"), (x + offset, y))
            draw.text((x + offset, y + _CELL - 30), audited.label[-26:], fill="black")
            draw.text((x + offset, y + _CELL - 18), audited.images[place].key[-26:], fill="black")
        draw.text((x, y + _CELL - 6), f"{pair.kind} {pair.correlation:.3f} {pair.change}", fill="black")
    with replacing(path) as file:
        sheet.save(file, "PNG")
    return len(rows)
