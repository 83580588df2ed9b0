"""A source with the images that an audit found elsewhere.

An image is identified by what it is, not by its name: by the hash of its stored bytes, which the audit read from shards. So
a set of other images under the same names loses none, and a set that was renamed or moved loses the right ones.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2i2.data.records import ImageRecord, Kind, Source
from m2i2.errors import M2I2Error
from m2i2.files import read_object, sha256_of

_WITHOUT_EFFECT = ("max_pixels",)
"""Fields of an encoding that do not change the bytes of what is stored."""
_REMEDY = "make one with tools/audit_leakage.py"


class Excluding:
    """``inner``, of which the images that ``audit`` (audit.json of tools/audit_leakage.py) lists are not to be stored.

    ``encoding``: the settings of the build. M2I2Error where the audit lists nothing that this build could hold: nothing at all,
    or images of the other kind of shards, or images stored with other settings, whose hashes are others.
    """

    def __init__(self, inner: Source, audit: Path, encoding: Mapping[str, Any]) -> None:
        self.name = inner.name
        self.kind: Kind = inner.kind
        self.left_out, self.notes = inner.left_out, inner.notes
        self._inner, self._audit = inner, audit
        content = read_object(audit, "audit")
        try:
            stored = {str(one["name"]): dict(one["encoding"]) for one in content["sets"]}
            rows = [tuple(str(row[f]) for f in ("set", "kind", "split", "image_sha256")) for row in content["exclude"]]
            settings = {name: _settings(stored[name]) for name, *_ in rows}
        except (TypeError, KeyError, ValueError) as e:
            raise M2I2Error(f"{audit} is not an audit of this version ({type(e).__name__}: {e}); {_REMEDY}.") from e
        if not rows:
            raise M2I2Error(f"{audit} lists no image to exclude; leave --exclude out.")
        if not (rows := [row for row in rows if row[1] == inner.kind]):
            raise M2I2Error(
                f"{audit} excludes no image of {inner.kind} shards (it lists {', '.join(settings)}); leave --exclude out."
            )
        ours = _settings(encoding)
        if all(settings[row[0]] != ours for row in rows):
            others = "; ".join(f"{name}: {settings[name]}" for name in dict.fromkeys(row[0] for row in rows))
            raise M2I2Error(
                f"{audit} knows images by the hashes of what was stored, and they were stored with other settings ({others}) "
                f"than this build's ({ours}). Build with the same, or audit shards built with these."
            )
        self.excluded = {(split, sha256): name for name, _, split, sha256 in rows if settings[name] == ours}
        """(split, hash of the stored image) -> the audited set that has it."""

    @property
    def digest(self) -> str:
        """The audit's content, for the index."""
        return sha256_of(self._audit)[:16]

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self._inner)

    def missed(self, met: Mapping[tuple[str, str], int]) -> Counter[str]:
        """Listed images of the audited sets whose others were met, as notes; M2I2Error where nothing was met."""
        if not met:
            raise M2I2Error(
                f"{self._audit} lists {len(self.excluded)} images of {', '.join(sorted(set(self.excluded.values())))}, and "
                f"{self.name} holds none of them in the same split: it is other data, or it was stored by another version. "
                f"Nothing was excluded and no index was written. Audit shards of this data, or leave --exclude out."
            )
        sets = {self.excluded[image] for image in met}
        missed = Counter(name for image, name in self.excluded.items() if name in sets and image not in met)
        return Counter({f"image of {name} that the audit lists and this build does not hold": n for name, n in missed.items()})


def _settings(encoding: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(encoding.items()) if name not in _WITHOUT_EFFECT)
