"""How commands end."""

import subprocess
import sys

from tests.conftest import ROOT


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    words = [sys.executable, str(ROOT / "launchers" / "pretrain.py"), "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert not said
