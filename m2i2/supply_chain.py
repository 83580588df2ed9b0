"""What this environment consists of: packages against a file of hashes, their licences, a bill of materials, known advisories.

Nothing here asks a network: packages are those that are installed, and advisories come from a file.
"""

import io
import json
import re
import sys
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import m2i2
from m2i2.errors import M2I2Error, shown
from m2i2.files import parse_json, read_bytes, read_object

OWN = "m2i2"
_FROM_PYTHON = ("pip",)
"""Packages that a virtual environment has from its Python."""
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\b")
_MOST_ADVISORIES, _MOST_ADVISORY = 1 << 30, 1 << 24
"""Bytes of a file of advisories, and of one advisory."""


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    """As PyPI normalises it: small letters, - between words."""
    version: str
    licence: str
    """An SPDX expression where the package has one, else what it calls its licence; UNKNOWN where it says nothing."""
    requires: tuple[str, ...] = ()
    """Names of the installed packages that it needs."""


@dataclass(frozen=True)
class Finding:
    """A package with a known fault."""

    package: Package
    advisory: str
    """Its names: the record's own, and CVE or GHSA numbers."""
    summary: str
    fixed: str
    """The versions that fix it, where the record names some."""


@cache
def installed() -> tuple[Package, ...]:
    """Every package of this environment but our own, by name."""
    # not what setuptools carries for itself, which stands on sys.path once something has imported it
    places = [place for place in sys.path if Path(place).name != "_vendor"]
    present = reversed(list(distributions(path=places)))
    found = {canonicalize_name(d.metadata["Name"]): d for d in present if d.metadata["Name"]}
    names = found.keys()
    packages = (Package(name, d.version, licence(d), _requires(d, names)) for name, d in found.items() if name != OWN)
    return tuple(sorted(packages, key=lambda package: package.name))


def licence(distribution: Distribution) -> str:
    """What the metadata calls a package's licence: its SPDX expression, else its classifiers, else the first line of a text."""
    metadata = distribution.metadata
    if expressions := metadata.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = sorted(set(classifiers) - {"OSI Approved"})
    text = str((metadata.get_all("License") or [""])[0]).strip()
    return " AND ".join(named) or (text.splitlines()[0][:100] if text else "UNKNOWN")


def _requires(distribution: Distribution, names: Iterable[str]) -> tuple[str, ...]:
    """Names of the installed packages that a package needs without its extras."""
    needed = (Requirement(line) for line in distribution.requires or [])
    wanted = {canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
    return tuple(sorted(wanted & set(names)))


# --- hashes


def read_lock(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Version and sha256 sums of every package in a requirements file; M2I2Error for a line that is not both."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        pinned, hashes = _PINNED.match(line), tuple(_HASH.findall(line))
        if not pinned or not hashes:
            raise M2I2Error(f"{path}: {shown(line)} is not NAME==VERSION with hashes; make the file again (CONTRIBUTING.md).")
        found[canonicalize_name(pinned[1])] = (pinned[2], hashes)
    return found


def differences(packages: Iterable[Package], lock: Mapping[str, tuple[str, tuple[str, ...]]]) -> list[str]:
    """A line for each package that is installed in another version than the file's, or is not in it, or is missing."""
    there = {package.name: package.version for package in packages if package.name not in _FROM_PYTHON}
    lines = [f"{name} {version} is not in the file" for name, version in there.items() if name not in lock]
    for name, (version, _) in lock.items():
        if name not in there:
            lines.append(f"{name} {version} is not installed")
        elif Version(there[name]) != Version(version):
            lines.append(f"{name} is {there[name]}, the file has {version}")
    return sorted(lines)


# --- licences


def licence_faults(packages: Iterable[Package], path: Path) -> list[str]:
    """A line for each package whose licence the list in ``path`` does not allow.

    The list is a JSON object: ``allowed`` (names of licences), and ``packages`` (name: {licence, why} of single packages).
    """
    rules = read_object(path, "list of licences")
    allowed, single = set(rules.get("allowed", [])), rules.get("packages", {})
    faults = []
    for package in packages:
        if package.name in single:
            if single[package.name]["licence"] != package.licence:
                faults.append(
                    f"{package.name} {package.version}: {package.licence}; the list has {single[package.name]['licence']}"
                )
        elif not {package.licence} & allowed and not _parts(package.licence) <= allowed:
            faults.append(f"{package.name} {package.version}: {package.licence}")
    return faults


def _parts(expression: str) -> set[str]:
    """The licences that an expression names."""
    return {part for part in re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", expression) if part.strip()}


# --- bill of materials


def bill_of_materials(packages: Iterable[Package], made: datetime | None = None) -> dict[str, Any]:
    """The packages and what needs what, as CycloneDX 1.6."""
    packages = list(packages)
    made = made or datetime.now(timezone.utc)
    refs = {package.name: f"pkg:pypi/{package.name}@{package.version}" for package in packages}
    own = f"pkg:pypi/{OWN}@{m2i2.__version__}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([own, *refs.values()]))}",
        "version": 1,
        "metadata": {
            "timestamp": made.isoformat(timespec="seconds"),
            "component": {"type": "application", "bom-ref": own, "name": OWN, "version": m2i2.__version__, "purl": own},
        },
        "components": [
            {
                "type": "library",
                "bom-ref": refs[package.name],
                "name": package.name,
                "version": package.version,
                "purl": refs[package.name],
                "licenses": [{"license": {"name": package.licence}}],
            }
            for package in packages
        ],
        "dependencies": [
            {"ref": own, "dependsOn": sorted(refs.values())},
            *({"ref": refs[p.name], "dependsOn": [refs[name] for name in p.requires if name in refs]} for p in packages),
        ],
    }


# --- advisories


def read_advisories(path: Path) -> Iterator[dict[str, Any]]:
    """Records of the OSV format: a JSON list or object, JSON lines, a zip of JSON files (as osv.dev gives PyPI's), or a folder.

    M2I2Error for a file that is none of these, and for one without any record.
    """
    none = True
    for name, content in _files(path):
        for record in _records(name, content):
            if not isinstance(record, dict) or not isinstance(record.get("affected", []), list) or "id" not in record:
                raise M2I2Error(f"{name} holds something else than advisories in the OSV format: {shown(record)}.")
            none = False
            yield record
    if none:
        raise M2I2Error(f"{path} holds no advisories; an audit against it would say nothing.")


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for inner in sorted(path.rglob("*.json")):
                yield str(inner), read_bytes(inner, _MOST_ADVISORY)
            return
        content = read_bytes(path, _MOST_ADVISORIES)
        if not zipfile.is_zipfile(io.BytesIO(content)):
            yield str(path), content
            return
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".json"):
                    if info.file_size > _MOST_ADVISORY:
                        raise M2I2Error(f"{path}: {shown(info.filename)} has {info.file_size} bytes, more than {_MOST_ADVISORY}.")
                    yield f"{path}:{info.filename}", archive.read(info)
    except (OSError, zipfile.BadZipFile) as e:
        raise M2I2Error(f"Cannot read the advisories {path}: {e}.") from e


def _records(name: str, content: bytes) -> Iterator[Any]:
    try:
        value = parse_json(content)
        yield from value if isinstance(value, list) else [value]
    except ValueError:
        try:
            yield from [parse_json(line) for line in content.splitlines() if line.strip()]
        except ValueError as e:
            raise M2I2Error(f"{name} is neither JSON nor JSON lines: {e}.") from e


def audit(packages: Iterable[Package], advisories: Iterable[Mapping[str, Any]]) -> tuple[list[Finding], int]:
    """The packages that a record says are affected, and how many records there were about packages of PyPI.

    A record that says in no way which versions are affected counts as affecting all.
    """
    there = {package.name: package for package in packages}
    found: dict[tuple[str, str], Finding] = {}
    records = 0
    for record in advisories:
        if record.get("withdrawn"):
            continue
        try:
            of_pypi = [a for a in record.get("affected", []) if a["package"]["ecosystem"].startswith("PyPI")]
            records += bool(of_pypi)
            for affected in of_pypi:
                package = there.get(canonicalize_name(affected["package"]["name"]))
                if package and _affects(affected, package.version):
                    found[package.name, str(record["id"])] = _finding(package, record, affected)
        except (KeyError, TypeError, AttributeError) as e:
            raise M2I2Error(f"The advisory {shown(record['id'])} is not in the OSV format ({type(e).__name__}: {e}).") from e
    return [found[key] for key in sorted(found)], records


def _finding(package: Package, record: Mapping[str, Any], affected: Mapping[str, Any]) -> Finding:
    names = ", ".join(map(str, [record["id"], *record.get("aliases", [])]))
    summary = str(record.get("summary") or record.get("details") or "")
    return Finding(package, names, shown(summary), ", ".join(_fixes(affected)) or "none named")


def _ranges(affected: Mapping[str, Any]) -> list[list[Mapping[str, str]]]:
    return [r.get("events", []) for r in affected.get("ranges", []) if r.get("type") in ("ECOSYSTEM", "SEMVER")]


def _fixes(affected: Mapping[str, Any]) -> list[str]:
    return [str(event["fixed"]) for events in _ranges(affected) for event in events if "fixed" in event]


def _affects(affected: Mapping[str, Any], version: str) -> bool:
    """The rule of the OSV schema: a version that is listed, or lies within a range."""
    ranges = _ranges(affected)
    if version in affected.get("versions", []) or (not ranges and not affected.get("versions")):
        return True
    try:
        return any(_within(events, Version(version)) for events in ranges)
    except InvalidVersion:
        return True  # it cannot be compared: somebody must look


def _within(events: list[Mapping[str, str]], version: Version) -> bool:
    """Whether a version lies in a range of events, each introduced, fixed or last_affected."""
    inside = False
    marks = sorted(((Version(text if text != "0" else "0.dev0"), kind) for event in events for kind, text in event.items()))
    for mark, kind in marks:
        if kind == "introduced" and version >= mark:
            inside = True
        elif (kind == "fixed" and version >= mark) or (kind == "last_affected" and version > mark):
            inside = False
    return inside
