"""The report on a GPU: every line is bounded in time, and one that fails does not stop the others."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2i2.cli import gpu_report as command
from m2i2.errors import M2I2Error
from m2i2.performance.gpu_jobs import jobs
from m2i2.performance.gpu_report import Found, Job, Line, Place, json_of, make_report, table
from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import LONG


def printing(code: str) -> "Job":
    """A job that runs a Python program."""
    name = f"job{abs(hash(code)) % 1000}"

    def work(place: Place, seconds: float) -> Found:
        return json_of(place.run(name, [sys.executable, "-c", code], seconds), "rate")

    return Job(name, work, 2.0, (Line(f"what {code[:20]}", "rate", 10, "pairs/s"),))


GOOD = printing("print('{\"rate\": 12}')")
SLOW = printing("import subprocess, sys, time; print('begun', flush=True); subprocess.run(['sleep', '77']); time.sleep(99)")
BROKEN = printing("import sys; sys.exit('error: the card is gone')")


def test_a_line_that_fails_says_why_and_the_others_are_measured(tmp_path: Path) -> None:
    place, started = Place(tmp_path, quick=False), time.monotonic()
    after = Job(
        "after", lambda place, seconds: {"rate": 9.0}, 1, (Line("missed", "rate", 10, "x"), Line("less", "rate", 10, "x", True))
    )
    needing = Job("needing", lambda place, seconds: {}, 1, (Line("needing", "rate", None, "x"),), needs=BROKEN.name)
    rows = make_report([BROKEN, SLOW, GOOD, needing, after], place, 60, lambda text: None)
    assert time.monotonic() - started < 30
    assert [row.value for row in rows] == [None, None, 12.0, None, 9.0, 9.0]
    assert [row.met for row in rows] == [None, None, True, None, False, True]
    assert "the card is gone" in rows[0].measured and "not done in 2 s" in rows[1].measured
    assert "begun" in (tmp_path / "logs" / f"{SLOW.name}.txt").read_text()
    assert rows[3].measured == f"failed: it needs {BROKEN.name}, which failed"
    assert "sleep 77" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout, "all of it has ended"
    text = table(rows, place)
    assert "| 9 x (missed)" in text and "at most 10 x" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["lines"]) == len(list(csv.reader((tmp_path / "report.csv").open()))) - 1 == 6
    assert report["lines"][2]["met"] is True and text.strip() in (tmp_path / "report.md").read_text()


def test_the_whole_report_is_bounded(tmp_path: Path) -> None:
    rows = make_report([SLOW, GOOD], Place(tmp_path, quick=True), 1.5, lambda text: None)
    assert rows[0].value is None and "no time was left" in rows[1].measured


def test_every_target_of_the_project_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = jobs()
    targets = {(line.target, line.unit) for job in found for line in job.lines}
    pairs, questions = {(v, "pairs/s") for v in (700, 1170, 4000)}, {(v, "questions/s") for v in (600, 200)}
    assert pairs | questions | {(40, "GB"), (1.05, "x the time"), (15, "ms"), (20, "ms"), (3, "ms")} <= targets
    assert {(0.97, ""), (0.9, ""), (90, "s"), (25, "s"), (240, "launches"), (4, "s"), (0, "tests")} <= targets
    names = [job.name for job in found]
    assert all(not job.needs or names.index(job.needs) < names.index(job.name) for job in found)
    assert command.main(["--list"]) == 0 and capsys.readouterr().out.split() == names
    assert command.main(["--only", "nothing"]) == 2


def test_a_result_is_the_last_one_that_was_printed() -> None:
    assert json_of('$ x\n{"rate": 1}\nrank 0: {"rate": 2}\n{"rate": half\nend', "rate") == {"rate": 2}
    with pytest.raises(M2I2Error, match="it printed no result: end"):
        json_of("$ x\nend", "rate")


def test_the_script_fills_its_table_on_a_cpu(tmp_path: Path) -> None:
    """A few of its lines; all of them with M2I2_LONG=1."""
    words = [] if LONG else ["--only", "pretrain-32", "tenth-step-first"]
    env = {**environment(), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    script = ["bash", str(ROOT / "tools" / "gpu_report.sh"), "--quick", *words]
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" not in done.stdout and "| what" in done.stdout
    assert len((tmp_path / "out" / "speed.csv").read_text().splitlines()) > 1
    assert next((tmp_path / "out" / "traces").rglob("trace.json.gz")).stat().st_size > 1000


def test_without_packages_and_wheels_it_says_what_to_do(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    checkout = tmp_path / "checkout" / "tools"
    checkout.mkdir(parents=True)
    (checkout / "gpu_report.sh").write_text((ROOT / "tools" / "gpu_report.sh").read_text())
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path / "out")}
    env.pop("PYTHON", None)
    done = subprocess.run(["bash", str(checkout / "gpu_report.sh")], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "set PYTHON or WHEELS" in done.stderr
