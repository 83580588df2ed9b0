"""What the tests of faults share: small shards, and a run on two ranks that nothing disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from tests.faults.runs import ITEMS, Watched, run_to_its_end, torchrun

STEPS = 60


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    for run in Watched.started:
        if run.process.poll() is None:
            run.kill_all()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of 80 synthetic images of 32 pixels in four shards."""
    folder = tmp_path_factory.mktemp("fault-shards") / "captions"
    words = ["--count", str(ITEMS), "--side", "32", "--samples-per-shard", "20", "--workers", "1"]
    assert make_shards(["captions", "phantoms", "--output", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 60 steps on two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_its_end(torchrun(2), shards, folder)
    return folder / "run"
