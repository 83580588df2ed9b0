"""A short soak: neither memory nor processes, files or shared memory grow with the steps."""

from pathlib import Path

from tests.faults.runs import SETTINGS, assert_gone, shared_memory
from tests.faults.soak import soak

STEPS = 160


def test_nothing_grows(tmp_path: Path) -> None:
    before = shared_memory()
    samples, run = soak(STEPS, tmp_path, every=10, settings=SETTINGS)
    late = [row for row in samples if row.step >= STEPS // 3 and row.processes > 3]  # at the end the loader processes go
    first, last = late[0], late[-1]
    assert last.step - first.step >= 50, [row.step for row in samples]
    # a rank's half of a batch is 0.2 MB: one batch kept a step would be 0.4 MB a step of both
    assert (last.ranks - first.ranks) / (last.step - first.step) < 0.15, samples
    assert (last.workers - first.workers) / (last.step - first.step) < 0.15, samples
    assert {row.processes for row in late} == {1 + 2 + 4}
    assert last.files <= first.files + 4, "besides batches on their way"
    assert max(row.shared for row in late) == 0, "shared memory has no names that could be left behind"
    assert_gone(run.seen)
    assert shared_memory() <= before
