"""Goodput: what a run's time went into, over several starts."""

from pathlib import Path

import pytest

from m2i2.reporting.goodput import goodput
from m2i2.training.display import figures_of
from m2i2.training.goodput import LEDGER, Goodput, process_age, summarise
from m2i2.training.lines import StepLines


class Clock:
    """A clock that moves by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def first_start(folder: Path, clock: Clock) -> None:
    """5 s to start; 10 steps of 1 s, 0.2 s of it waiting; a validation of 4 s with a save of 1 s in it; 2 steps skipped."""
    ledger = Goodput(folder, 0, active=True, clock=clock, age=5.0)
    for step in range(1, 11):
        clock.pass_by(1.0)
        ledger.add("data", 0.2)
        if step == 5:
            with ledger.spending("validation"):
                clock.pass_by(3.0)
                with ledger.spending("saves"):
                    clock.pass_by(1.0)
            ledger.reading(step, 0)
    row = ledger.reading(10, 2)
    assert ledger.spent == pytest.approx(
        {"start": 5, "data": 2, "saves": 1, "validation": 3, "replays": 0, "skipped": 1.6, "lost": 0}
    )
    assert row["goodput"] == pytest.approx(6.4 / 19)


def test_the_time_of_a_run_over_two_starts(tmp_path: Path) -> None:
    clock = Clock()
    first_start(tmp_path, clock)
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"start": 1, "st')  # a kill cut the line off
    clock.pass_by(500)
    ledger = Goodput(tmp_path, 5, active=True, clock=clock, age=2.0)  # from the checkpoint of step 5
    clock.pass_by(8)
    row = ledger.reading(13, 0)
    found = summarise(StepLines.of(tmp_path / LEDGER))
    assert found.starts == 2 and found.wall == pytest.approx(19 + 10)
    assert found.spent["start"] == pytest.approx(7)
    assert found.spent["lost"] == pytest.approx(2.4), "steps 6 to 10, less their waiting and the two that were skipped"
    assert found.share == pytest.approx((4 + 8) / 29) == row["goodput"]
    assert ("goodput", "41.4 % (start 24.1 %, validation 10.3 %, lost 8.3 %)") in figures_of(row)
    section = goodput(list(StepLines.of(tmp_path / LEDGER)))
    assert sum(line["percent"] for line in section["lines"]) == pytest.approx(100)
    assert section["lines"][0]["what"] == "steps that count"


def test_a_start_that_resumes_before_two_others_makes_both_lose(tmp_path: Path) -> None:
    rows = [
        {"start": number, "time": 0.0, "step": step, "wall": float(wall), "spent": {"start": 1.0}}
        for number, step, wall in ((1, 0, 1), (1, 10, 11), (2, 10, 1), (2, 20, 11), (3, 4, 1), (3, 6, 3))
    ]
    found = summarise(rows)
    assert found.spent["lost"] == pytest.approx(6 + 10)
    assert found.wall - sum(found.spent.values()) == pytest.approx(4 + 2)


def test_a_clock_that_is_set_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, set_back = Clock(), iter([1e9, 0.0, 5e8])
    monkeypatch.setattr("m2i2.training.goodput.time.time", lambda: next(set_back))
    ledger = Goodput(tmp_path, 0, active=True, clock=clock, age=1.0)
    clock.pass_by(9.0)
    assert ledger.reading(3, 0)["goodput"] == pytest.approx(0.9)
    Goodput(tmp_path, 3, active=True, clock=clock, age=1.0)
    assert summarise(StepLines.of(tmp_path / LEDGER)).wall == pytest.approx(11.0)


def test_the_age_of_a_process_counts_its_imports() -> None:
    assert 0 < process_age() < 86400 * 30
