"""One cluster for all of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from tests.slurm.cluster import Cluster, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes of four CPUs and two (pretended) GPUs."""
    with running(NODES="3", CPUS="4", GPUS="2") as made:
        yield made


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shards ``captions`` and ``vqa``."""
    folder = tmp_path_factory.mktemp("slurm-shards")
    for kind, count in (("captions", "96"), ("vqa", "24")):
        assert make_shards([kind, "phantoms", "--output", str(folder / kind), "--count", count, "--side", "64"]) == 0
    return folder
