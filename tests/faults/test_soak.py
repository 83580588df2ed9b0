"""A short soak: neither memory nor processes, files or shared memory grow with the steps."""

from pathlib import Path

from tests.faults.runs import SETTINGS, assert_gone, shared_memory
from tests.faults.soak import soak
from tests.preloaded import LONG

STEPS = 160 if LONG else 90


def test_nothing_grows(tmp_path: Path) -> None:
    samples, run = soak(STEPS, tmp_path, every=10, settings=[*SETTINGS, "vision.image_size=128", "training.batch=64"])
    late = [row for row in samples if row.step >= STEPS // 3 and row.processes > 5]  # at the end the loader processes go
    first, last = late[0], late[-1]
    assert last.step - first.step >= 50, [row.step for row in samples]
    # the images of a batch are 3.1 MB: so much would a batch kept in every step add to the ranks or to the loader processes.
    # What a rank frees becomes its forked loader processes' alone: some 30 MB may move from one figure to the other.
    for growth in (last.ranks - first.ranks, last.workers - first.workers):
        assert growth / (last.step - first.step) < 1.5, samples
    assert {row.processes for row in late} == {1 + 2 + 2 + 4}, "torchrun, ranks, what watches them, loader processes"
    assert last.files <= first.files + 4, "besides batches on their way"
    assert max(row.shared for row in late) <= 4, "each loader process gives a file a name for a moment"
    assert_gone(run.seen)
    assert not shared_memory(run.seen)
