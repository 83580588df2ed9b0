"""Nothing that this project writes follows a link that was planted where it is going to write."""

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from m2i2.backends.choice import compile_layers
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.errors import M2I2Error
from tests.conftest import ROOT

NEW = {"files.py", "tar.py", "running.py", "packing.py", "gpu_jobs.py", "gpu_report.py", "pipeline.py", "terminal.py"}
"""The one module; and what writes into new folders and files (mode x), a work folder's log, or temporary folders of its own."""


def writers(path: Path) -> Iterator[int]:
    """Lines of a file that open something to write by another way than `m2i2.files`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        modes = [word for word in words if set(word) & set("wax+") and set(word) <= set("rwabtx+")]
        opened = name == "open" and modes
        if opened or (name in ("write_text", "write_bytes") and isinstance(node.func, ast.Attribute)):
            yield node.lineno


def test_one_module_opens_what_is_written() -> None:
    files = [path for path in (ROOT / "m2i2").rglob("*.py") if path.name not in NEW]
    assert len(files) > 150
    assert not [f"{path.relative_to(ROOT)}:{line}" for path in files for line in writers(path)]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file that planted links point at."""
    path = tmp_path / "mine"
    path.write_text("the user's own")
    return path


def test_a_tokenizer_is_saved_over_links(tmp_path: Path, mine: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).symlink_to(mine)
    train_tokenizer(["a lung"], 60).save(folder)
    assert mine.read_text() == "the user's own" and not any(path.is_symlink() for path in folder.iterdir())


def test_pictures_of_a_run_are_saved_over_links(tmp_path: Path, mine: Path) -> None:
    from m2i2.cli.audit_leakage import _sheet

    (tmp_path / "pairs.png").symlink_to(mine)
    _sheet([], tmp_path / "pairs.png")
    assert mine.read_text() == "the user's own"


def test_compiled_code_lies_in_a_folder_of_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_layers(nn.Linear(1, 1))
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_relative_to(tmp_path) and stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder.chmod(0o777)
    with pytest.raises(M2I2Error, match=r"everybody may write in the folder.* Name a folder of your own in TORCH"):
        compile_layers(nn.Linear(1, 1))
