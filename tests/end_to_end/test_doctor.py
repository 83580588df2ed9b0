"""The examination of the machine: what it finds here, and what it says of installations that are broken on purpose."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import afresh, run


def examine(folder: Path, *words: str, shadows: Path | None = None) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code and findings by subject; packages in ``shadows`` come before the installed ones."""
    place = environment()
    if shadows is not None:
        place["PYTHONPATH"] = f"{shadows}:{place.get('PYTHONPATH', '')}"
    # forked from an interpreter that has its imports, unless it is to import others
    start = run if shadows is None else afresh
    done = start([sys.executable, str(ROOT / "tools" / "doctor.py"), "--json", *words], folder, place, 300)
    findings: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout):
        findings.setdefault(finding["subject"], []).append(finding)
    return done.returncode, findings


def test_two_ranks_train_here(tmp_path: Path) -> None:
    code, findings = examine(tmp_path, "--train")
    assert code == 0
    assert findings["training"][0]["status"] == "ok", findings["training"]
    assert "trained 2 steps" in findings["training"][0]["found"]
    assert not any(f["status"] == "fault" for rows in findings.values() for f in rows)
    assert all(f["remedy"] for rows in findings.values() for f in rows if f["status"] != "ok")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_what_killed_processes_left_in_shared_memory_is_named(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, used = (Path(f"/dev/shm/torch_{pid}_2023_0") for pid in (ended.pid, os.getpid()))
    try:
        left.write_bytes(bytes(3_000_000))
        with used.open("wb") as file:
            file.truncate(1 << 40)  # takes no memory, and would show if it were counted
        code, findings = examine(tmp_path)
    finally:
        left.unlink(missing_ok=True)
        used.unlink(missing_ok=True)
    assert code == 0
    (note,) = [f for f in findings["shared memory"] if "of processes that have ended" in f["found"]]
    assert note["status"] == "note" and "Remove them" in note["remedy"]
    assert 3 <= int(re.search(r", ([\d,]+) MB", note["found"])[1].replace(",", "")) < 1_000_000


def package(folder: Path, name: str, code: str, metadata: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / f"{name}-0.1.dist-info").mkdir()
    (folder / f"{name}-0.1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n{metadata}")


def test_an_old_and_broken_package_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    package(tmp_path / "shadows", "deepspeed", "raise ImportError('no such operator')\n", "")
    code, findings = examine(tmp_path, shadows=tmp_path / "shadows")
    assert code == 2
    assert findings["deepspeed"][0]["status"] == "fault"
    assert "no such operator" in findings["deepspeed"][0]["found"]
    assert findings["packages"][0]["status"] == "fault"
    assert "deepspeed 0.1, <0.20,>=0.19.8 is required" in findings["packages"][0]["found"]
    assert "pip install" in findings["packages"][0]["remedy"]


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ("Summary: A toolkit for the Pyramid web framework\n", "PyPI's, a web toolkit"),
        ("Summary: PyTorch extensions written by NVIDIA\n", "a Python-only build"),
    ],
)
def test_the_wrong_apex_is_told_from_the_right_one(tmp_path: Path, summary: str, message: str) -> None:
    package(tmp_path / "shadows", "apex", "", summary)
    code, findings = examine(tmp_path, shadows=tmp_path / "shadows")
    assert code == 0, "apex is optional"
    assert findings["apex"][0]["status"] == "note"
    assert message in findings["apex"][0]["found"]
