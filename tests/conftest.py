"""Where the data that is not part of the project lies, and what a test says when it is not there."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two of these share two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = ("cluster", "undisturbed", "phantom_run")
"""Dear fixtures, the dearest first: tests that use one run one after the other in one process, which makes it once."""


def _group(item: pytest.Item) -> str:
    """What a process takes as a whole: the tests of a dear fixture, or a file."""
    used = getattr(item, "fixturenames", ())
    return next((name for name in TOGETHER if name in used), item.nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long groups first, so that both processes of ``make test`` end at about the same time."""
    groups = {item: _group(item) for item in items}
    sizes = list(TOGETHER)
    items.sort(key=lambda item: sizes.index(groups[item]) if groups[item] in sizes else len(sizes))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


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


@pytest.fixture(scope="session")
def phantom_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small model that answers questions about the lesion of a phantom (see tests/phantom_model.py)."""
    from tests.phantom_model import train

    return train(tmp_path_factory.mktemp("phantom-model"))
