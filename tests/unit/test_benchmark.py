"""Every stage of the benchmark measures at small sizes and ends with one JSON object."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.launching import environment


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["pretrain", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"mfu", "pairs_per_s", "peak_rss_gb"}),
        (["finetune", "--preset", "tiny", "--batch", "4", "--steps", "1"], {"mfu", "pairs_per_s", "peak_rss_gb"}),
        (["ranking", "--preset", "tiny", "--questions", "2", "--images", "1", "--rounds", "1"], {"mfu", "seconds_per_question"}),
        (["data", "--rounds", "1", "--side", "64", "--size", "48"], {"images_per_s_per_core"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_stage_reports(words: list[str], keys: set[str]) -> None:
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), words[0], "--json", *words[1:]]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["stage"] == words[0] and keys <= set(row)
    assert all(row[key] > 0 for key in keys) and row.get("mfu", 0.5) < 1.5
