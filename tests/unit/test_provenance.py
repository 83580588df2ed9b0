"""The commit that a run stores."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_code_that_differs_from_its_commit_is_marked_and_records_are_not(tmp_path: Path) -> None:
    (tmp_path / "m2i2" / "training").mkdir(parents=True)
    for file in ("m2i2/__init__.py", "m2i2/training/__init__.py", "m2i2/provenance.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init"], ["add", "m2i2"], [*identity, "commit", "-m", "code"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    def state() -> str:
        words = [sys.executable, "-B", "-c", "from m2i2.provenance import git_state; print(git_state())"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    commit = state()
    assert len(commit) == 40
    record = tmp_path / "docs" / "results" / "recipe" / "cell.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert state() == commit
    (tmp_path / "m2i2" / "new.py").touch()
    assert state() == f"{commit}+changes"
