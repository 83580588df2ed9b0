"""Where the data that is not part of the project lies, and what a test says when it is not there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
