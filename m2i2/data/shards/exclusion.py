"""A source without the images that an audit found elsewhere."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind, Source
from m2i2.errors import M2I2Error
from m2i2.files import read_object, sha256_of


class Excluding:
    """``inner`` less the records that ``audit`` (audit.json of tools/audit_leakage.py) lists under ``exclude``."""

    def __init__(self, inner: Source, audit: Path) -> None:
        self.name = inner.name
        self.kind: Kind = inner.kind
        self._inner, self._audit = inner, audit
        listed = read_object(audit, "audit").get("exclude")
        try:
            rows = [(str(row["source"]), str(row["split"]), str(row["key"])) for row in listed or []]
        except (TypeError, KeyError) as e:
            raise M2I2Error(f"{audit} is not an audit ({type(e).__name__}: {e}); make one with tools/audit_leakage.py.") from e
        if listed is None:
            raise M2I2Error(f"{audit} has no list 'exclude'; make one with tools/audit_leakage.py.")
        self._unwanted = {(split, key) for source, split, key in rows if source == inner.name}
        if not self._unwanted:
            sources = ", ".join(sorted({source for source, _, _ in rows})) or "nothing"
            raise M2I2Error(f"{audit} excludes no record of {inner.name} (it lists {sources}); leave --exclude out.")
        self.left_out: Counter[str] = Counter()
        self.notes = inner.notes

    @property
    def digest(self) -> str:
        """The audit's content, for the index."""
        return sha256_of(self._audit)[:16]

    def __iter__(self) -> Iterator[ImageRecord]:
        excluded = 0
        for record in self._inner:
            if (record.split, record.key) in self._unwanted:
                excluded += 1
            else:
                yield record
        self.left_out = Counter(self._inner.left_out)
        self.left_out["excluded by the audit"] = excluded
