"""Tests of what a GPU computes: ``pytest tests/cuda``. ``--device cpu`` runs them on a CPU, which proves their own code."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m2i2.cli.make_shards import main as make_shards

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need, before the first one


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests compute."""
    found = torch.device(request.config.getoption("--device"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU here; --device cpu runs these tests on a CPU")
    if found.type == "cpu" and torch.cuda.is_available():
        pytest.skip("a run takes the GPU that is there; hide it with CUDA_VISIBLE_DEVICES= to test on the CPU")
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """A GPU, for what only a GPU has."""
    if device.type != "cuda":
        pytest.skip(
            "only a GPU has graphs, and reads that wait; tests/unit/test_graphs.py and test_no_host_reads.py are a CPU's part"
        )
    return device


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that compute the same bits every time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shards(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of 96 synthetic images of 32 pixels."""
    folder = tmp_path_factory.mktemp("cuda") / "captions"
    words = ["--count", "96", "--side", "32", "--samples-per-shard", "24", "--workers", "1"]
    assert make_shards(["captions", "phantoms", "--output", str(folder), *words]) == 0
    return folder
