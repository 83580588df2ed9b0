"""What a release consists of beside the package: versions that agree, the site, and containers that can be built."""

import logging
import re
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

import m2i2
from tests.conftest import ROOT

DOCKERFILE, DEFINITION = ROOT / "requirements" / "Dockerfile", ROOT / "requirements" / "m2i2.def"


def test_the_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == m2i2.__version__ and citation["license"] == "MIT"
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next(section for section in sections if section != "Unreleased")
    assert newest.split()[0] == m2i2.__version__
    assert sections.index(newest) <= 1, "only what is not released stands above the version"


def test_the_site_is_built_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """mkdocs warns of links, anchors and pages that are missing, and of pages that the navigation lacks."""
    with caplog.at_level(logging.WARNING, "mkdocs"):
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "site" / f"{page.stem}.html").is_file(), page.name
    assert "search/search_index.json" in {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*.json")}


def test_containers_copy_files_that_exist_and_install_alike() -> None:
    docker, apptainer = DOCKERFILE.read_text().replace("\\\n", " "), DEFINITION.read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", docker, re.MULTILINE) for word in line.split()[:-1]]
    files = apptainer.split("%files")[1].split("%post")[0].split()
    pairs = list(zip(files[::2], files[1::2], strict=True))
    assert all(inside == f"/opt/m2i2/{outside}" for outside, inside in pairs)
    assert len(copied) > 8 and len(pairs) > 8
    for name in [*copied, *(outside for outside, _ in pairs)]:
        assert (ROOT / name).exists(), name
    told = (ROOT / ".dockerignore").read_text().split()
    assert told[0] == "*", "only what is named goes to the daemon"
    assert {name.split("/")[0] for name in copied} == {line[1:] for line in told if line.startswith("!")}
    assert {name.split("/")[0] for name in copied} == {outside for outside, _ in pairs}
    installs = [
        [re.sub(r" --no-cache-dir", "", words).strip() for words in re.findall(r"pip (install [^&\n]*)", text)]
        for text in (docker, apptainer)
    ]
    assert installs[0] == installs[1] and len(installs[0]) == 3
    assert re.search(r"^FROM (\S+)$", docker, re.MULTILINE)[1] == re.search(r"^From: (\S+)$", apptainer, re.MULTILINE)[1]  # type: ignore[index]
    for text in (docker, apptainer):
        listed = (ROOT / "setup.py").read_text()
        for command in re.findall(r"\bm2i2-(\w+)\b", text):
            assert f'"{command}"' in listed.split("COMMANDS = [")[1].split("]\n")[0], command
