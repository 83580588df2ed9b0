"""Where the data that is not part of the project lies, and what a test says when it is not there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from xdist.scheduler import LoadScopeScheduling

if "PYTEST_XDIST_WORKER" in os.environ:  # several of these share two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("M2I2_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = (
    ("tests/slurm/",),
    tuple(f"tests/faults/test_{name}.py" for name in ("kills", "world_sizes", "checkpoints", "data", "disks")),
    ("tests/app/",),
)
"""Tests that share a dear fixture, or take long, the longest first: one of the processes of ``make test`` takes such a group as a
whole, and makes the fixture once; otherwise files are shared out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests of tests/cuda compute."""
    parser.addoption("--device", choices=["cuda", "cpu"], default="cuda", help="of the tests in tests/cuda (default: %(default)s)")


def _group(path: str) -> int:
    return next((number for number, places in enumerate(TOGETHER) if path.startswith(places)), len(TOGETHER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long groups first, so that all processes end at about the same time."""
    items.sort(key=lambda item: _group(item.nodeid))


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's scheduling of scopes, with the scopes above."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return str(TOGETHER[_group(path)]) if _group(path) < len(TOGETHER) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """How the tests are shared out."""
    return GroupScheduling(config, log)


@pytest.fixture(autouse=True)
def _not_a_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that trains in this process makes it a rank, with a process group and threads: later tests find none of them."""
    monkeypatch.delenv("RANK", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set {variable} to the folder of {name}")
    return folder


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """Numbers taken from the official code."""
    return _folder("M2I2_PARITY", "parity")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets."""
    return _folder("M2I2_TEST_DATA", "data")
