"""Writing shards: encoded records in order into tars, each with a note and a table of rows, so that a killed build can go on."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from m2i2.data.records import ImageRecord
from m2i2.data.shards.encoding import Encoded, Reject
from m2i2.data.shards.identity import identity, keys_digest, records_digest, together
from m2i2.data.shards.split import ITEM, SPLIT_NAME, read_table
from m2i2.data.shards.storage import Shard
from m2i2.data.shards.tar import TarWriter
from m2i2.errors import M2I2Error
from m2i2.files import WRITING, check_file, read_object, replacing, sha256_of, unfinished, write_text

_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""What a tar member and a WebDataset key can be."""


class ShardWriter:
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
