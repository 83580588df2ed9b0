"""What is installed: in the versions of the file of hashes, under licences of the list, without known faults; and listed."""

import json
import platform
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.supply_chain import main
from m2i2.errors import M2I2Error
from m2i2.supply_chain import Package, audit, bill_of_materials, differences, installed, licence_faults, read_advisories, read_lock
from tests.conftest import ROOT

KIND = f"{sys.platform}-{platform.machine()}-{platform.python_implementation().lower()}-{'.'.join(map(str, sys.version_info[:2]))}"
REQUIREMENTS = ROOT / "requirements"
LOCK = REQUIREMENTS / f"{KIND}.txt"
LICENCES = REQUIREMENTS / "licences.json"


@pytest.fixture(scope="module")
def packages() -> tuple[Package, ...]:
    return installed()


@pytest.mark.skipif(not LOCK.exists(), reason=f"there is no file of hashes for {KIND}")
def test_what_is_installed_is_what_the_hashes_are_of(packages: tuple[Package, ...]) -> None:
    assert differences(packages, read_lock(LOCK)) == []


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_every_file_of_hashes_is_whole_and_agrees_with_the_tested_versions(path: Path) -> None:
    lock = read_lock(path)
    tested = dict(
        re.findall(r"^([\w.-]+)==([^;\s]+)(?:; python_version >= .*)?$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    for name, version in tested.items():
        found = lock.get(name.lower().replace("_", "-"))
        assert found is None or found[0] == version, name
    if path.name != "build.txt":
        assert len(lock) > 150 and {"torch", "deepspeed", "setuptools", "gradio"} <= lock.keys()


def test_what_builds_is_pinned() -> None:
    builds = read_lock(REQUIREMENTS / "build.txt")
    required = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert required and required[1] == f'"setuptools=={builds["setuptools"][0]}"'


def test_a_line_without_a_hash_or_a_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text("# a comment\nNumPy==2.0 \\\n    --hash=sha256:" + "a" * 64 + " \\\n    --hash=sha256:" + "b" * 64 + "\n")
    assert read_lock(path) == {"numpy": ("2.0", ("a" * 64, "b" * 64))}
    for line in ("numpy==2.0", "numpy>=2 --hash=sha256:" + "a" * 64, "--index-url https://elsewhere"):
        path.write_text(line + "\n")
        with pytest.raises(M2I2Error, match="is not NAME==VERSION with hashes"):
            read_lock(path)


def test_differences_are_told() -> None:
    lock = {"a": ("1.0", ("x",)), "b": ("2", ("x",)), "c": ("3", ("x",))}
    there = [Package("a", "1.0.0", "MIT"), Package("b", "2.1", "MIT"), Package("d", "1", "MIT"), Package("pip", "1", "MIT")]
    assert differences(there, lock) == ["b is 2.1, the file has 2", "c 3 is not installed", "d 1 is not in the file"]


# --- licences


def test_every_licence_is_on_the_list(packages: tuple[Package, ...]) -> None:
    assert licence_faults(packages, LICENCES) == []


def test_a_licence_that_is_not_on_the_list_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"allowed": ["MIT", "BSD-3-Clause"], "packages": {"odd": {"licence": "Odd", "why": "read"}}}
    (tmp_path / "list.json").write_text(json.dumps(rules))
    there = [Package("a", "1", "MIT AND BSD-3-Clause"), Package("b", "1", "MIT AND GPL-3.0-only"), Package("odd", "1", "Odd")]
    assert licence_faults(there, tmp_path / "list.json") == ["b 1: MIT AND GPL-3.0-only"]
    changed = [Package("odd", "2", "GPL-3.0-only"), Package("c", "1", "UNKNOWN")]
    assert licence_faults(changed, tmp_path / "list.json") == ["odd 2: GPL-3.0-only; the list has Odd", "c 1: UNKNOWN"]
    (tmp_path / "list.json").write_text('{"allowed": []}')
    assert main(["licences", str(tmp_path / "list.json")]) == 2
    assert "finding(s) in" in capsys.readouterr().err


# --- bill of materials


def test_the_bill_of_materials_names_every_package_and_what_needs_it(packages: tuple[Package, ...], tmp_path: Path) -> None:
    assert main(["sbom", str(tmp_path / "sbom.json")]) == 0
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {(c["name"], c["version"]) for c in bill["components"]} == {(p.name, p.version) for p in packages}
    refs = {c["bom-ref"]: c["name"] for c in bill["components"]}
    assert len(refs) == len(packages) and all(c["purl"] == f"pkg:pypi/{c['name']}@{c['version']}" for c in bill["components"])
    needs = {refs.get(row["ref"], "m2i2"): {refs[ref] for ref in row["dependsOn"]} for row in bill["dependencies"]}
    assert needs["m2i2"] == set(refs.values()) and {"torch", "numpy"} <= needs["torchvision"]
    assert bill["serialNumber"] == bill_of_materials(packages)["serialNumber"], "the same packages, the same bill"


# --- advisories


def record(number: str, name: str = "pillow", **affected: Any) -> dict[str, Any]:
    about = {"package": {"ecosystem": "PyPI", "name": name}, **affected}
    return {"id": number, "aliases": [f"CVE-{number}"], "summary": "A heap overflow.", "affected": [about]}


def events(*marks: dict[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": list(marks)}]}


@pytest.mark.parametrize(
    ("affected", "found"),
    [
        (events({"introduced": "0"}, {"fixed": "12.3.0"}), False),
        (events({"introduced": "0"}, {"fixed": "12.3.1"}), True),
        (events({"introduced": "12.3"}), True),
        (events({"introduced": "12.3.0.post1"}), False),
        (events({"introduced": "0"}, {"last_affected": "12.3.0"}), True),
        (events({"introduced": "0"}, {"last_affected": "12.2"}), False),
        (events({"introduced": "0"}, {"fixed": "9"}, {"introduced": "12"}, {"fixed": "13"}), True),
        (events({"introduced": "12"}, {"fixed": "13"}, {"introduced": "0"}, {"fixed": "9"}), True),
        ({"versions": ["12.3.0"]}, True),
        ({"versions": ["12.2.0"]}, False),
        ({"versions": ["12.2.0"], **events({"introduced": "0"}, {"fixed": "f00ba7"}, kind="GIT")}, False),
        ({}, True),
        (events({"introduced": "0"}, {"fixed": "not a version"}), True),
    ],
)
def test_advisories_are_compared_by_version(affected: dict[str, Any], found: bool) -> None:
    there = [Package("pillow", "12.3.0", "MIT")]
    findings, records = audit(there, [record("A-1", "Pillow", **affected)])
    assert records == 1 and bool(findings) is found
    if found:
        assert findings[0].advisory == "A-1, CVE-A-1" and findings[0].package == there[0]


def test_withdrawn_records_and_those_of_other_registries_do_not_count() -> None:
    npm = record("A-1")
    npm["affected"][0]["package"]["ecosystem"] = "npm"
    assert audit([Package("pillow", "1", "MIT")], [npm, {**record("A-2"), "withdrawn": "2026-01-01T00:00:00Z"}]) == ([], 0)


@pytest.mark.parametrize("affected", [[3], [{"package": 3}], [{"package": {"ecosystem": "PyPI"}}]])
def test_a_record_of_another_form_is_refused(affected: Any) -> None:
    with pytest.raises(M2I2Error, match="'A-1' is not in the OSV format"):
        audit([Package("pillow", "1", "MIT")], [{"id": "A-1", "affected": affected}])


@pytest.mark.parametrize("form", ["list", "lines", "zip", "folder", "one"])
def test_an_audit_reads_a_local_file(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record("OLD-1", **events({"introduced": "0"}, {"fixed": "1.0"}))]
    records += [] if form == "one" else [record("BAD-1", **events({"introduced": "0"}, {"fixed": "9999"}))]
    path = tmp_path / "advisories"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for one in records:
                archive.writestr(f"{one['id']}.json", json.dumps(one))
    elif form == "folder":
        path.mkdir()
        for one in records:
            (path / f"{one['id']}.json").write_text(json.dumps(one))
    else:
        text = json.dumps(records if form == "list" else records[0]) if form != "lines" else "\n".join(map(json.dumps, records))
        path.write_text(text)
    assert main(["audit", str(path)]) == (0 if form == "one" else 2)
    told = capsys.readouterr()
    assert "OLD-1" not in told.err
    if form == "one":
        assert "against 1 advisories: in order." in told.out
    else:
        assert re.search(r"^pillow \S+: BAD-1, CVE-BAD-1: 'A heap overflow\.' Fixed in: 9999$", told.err, re.MULTILINE)


@pytest.mark.parametrize("content", ["", "[]", "[3]", "{}", '{"id": "a", "affected": 3}', "[[", '{"id": 1'])
def test_a_file_without_advisories_is_no_clean_audit(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(M2I2Error, match=r"holds no advisories|something else than advisories|neither JSON"):
        list(read_advisories(tmp_path / "file"))
