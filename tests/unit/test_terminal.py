"""Whatever data, servers and logs say, the terminal shows it and obeys nothing in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from m2i2.cli.make_shards import main as make_shards
from m2i2.cluster.study import Member
from m2i2.config import ObjectivesConfig, PretrainingConfig
from m2i2.data.sources import open_source
from m2i2.errors import MOST_MESSAGE, M2I2Error, plain
from m2i2.exits import guarded
from m2i2.models.weights import load, read_state
from m2i2.objectives.registry import active
from m2i2.options import override
from m2i2.terminal import say

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\nroot# rm -rf /"
"""A title, a cleared screen, colours, a turned direction, an overwritten line and a line of its own."""
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def refused_table(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train_captions.csv").write_text(f'ID,"{EVIL}"\na,b\n')
    list(open_source("captions", "rocov2", folder))


def refused_image(folder: Path) -> None:
    (folder / "p.json").write_text(json.dumps([{"image": f"../{EVIL}", "caption": "c"}]))
    list(open_source("captions", "json", folder / "p.json"))


def refused_tensor(folder: Path) -> None:
    save_file({EVIL: torch.ones(1)}, folder / "x.safetensors")
    load(torch.nn.Linear(1, 1), read_state(folder / "x.safetensors"), EVIL)


SAID: dict[str, Callable[[Path], Any]] = {
    "a column": refused_table,
    "an image's name": refused_image,
    "a tensor's name": refused_tensor,
    "a module's name": lambda folder: active(ObjectivesConfig(plugins=(EVIL,))),
    "a setting": lambda folder: override(PretrainingConfig(), [f"{EVIL}=1"]),
    "a file's name": lambda folder: read_state(folder / EVIL.replace("/", "")),
    "a server's reason": lambda folder: _raise(f"https://host answered 500 {EVIL}."),
}


def _raise(message: str) -> None:
    raise M2I2Error(message)


@pytest.mark.parametrize("what", SAID)
def test_errors_are_one_paragraph_that_a_terminal_only_shows(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: SAID[what](tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "owned" in said
    assert not OBEYED.search(said) and said.count("\n") == 1, "one line: what looks like a prompt stands in it"
    assert "\\x1b]0;owned\\x07" in said or "\\\\x1b]0;owned\\\\x07" in said or "\\x1b" in said


def test_long_messages_keep_their_end() -> None:
    message = str(M2I2Error(f"The file {'x' * 100_000} is damaged. Copy it again."))
    assert len(message) <= MOST_MESSAGE and message.startswith("The file x") and message.endswith("x is damaged. Copy it again.")


def test_notes_of_a_build_are_shown_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{EVIL}.png".replace("/", ""), "caption": "c"}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    words = ["captions", "json", str(tmp_path / "p.json"), "--output", str(tmp_path / "s"), "--workers", "1"]
    assert make_shards([*words, "--max-rejects", "1"]) in (0, 2)
    out, err = capsys.readouterr()
    assert not OBEYED.search(out + err)


def test_a_fault_keeps_its_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    def fault() -> int:
        raise RuntimeError(EVIL)

    assert guarded(fault) == 1
    said = capsys.readouterr().err
    assert not OBEYED.search(said) and said.count("\n") > 3 and "RuntimeError: \\x1b]0;owned" in said


def test_say_escapes_cuts_and_lets_our_own_signs_through(capsys: pytest.CaptureFixture[str]) -> None:
    say(Member(EVIL, {}, "run"), "x" * 100_000, sign="\x1b[32mok\x1b[0m ")
    said = capsys.readouterr().out
    assert said.startswith("\x1b[32mok\x1b[0m Member(") and not OBEYED.search(said.split(" ", 1)[1])
    assert len(said) < 21_000


def test_what_is_no_control_stays() -> None:
    text = "Übung\tñ 肺 \U0001fac1 \u200d ไทย"
    assert plain(text) == text and str(M2I2Error(text)) == text
