"""Every real data set goes through shards and comes back: the counts, and the texts to the letter."""

from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.records import Kind
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.sources import open_source

SETS: list[tuple[Kind, str, str, dict[str, int]]] = [
    ("captions", "rocov2", "rocov2_sample", {"train": 600, "val": 100, "test": 100}),
    ("captions", "iu-xray", "iu_xray_subset", {"train": 850}),
    ("vqa", "vqa-rad", "vqa_rad", {"train": 3064, "test": 451}),
    ("vqa", "vqa-rad", "data_RAD", {"train": 3064, "test": 451}),
    ("vqa", "slake", "slake", {"train": 4919, "val": 1053, "test": 1061}),
    ("vqa", "pathvqa", "pathvqa_slice", {"train": 712, "val": 152, "test": 266}),
]


@pytest.mark.parametrize(("kind", "name", "folder", "counts"), SETS, ids=[s[2] for s in SETS])
def test_through_shards_and_back(
    shared_data: Path, tmp_path: Path, kind: Kind, name: str, folder: str, counts: dict[str, int]
) -> None:
    assert make_shards([kind, name, str(shared_data / folder), "--output", str(tmp_path / "s"), "--side", "64"]) == 0
    index = read_index(tmp_path / "s")
    assert {split: sum(s["items"] for s in rows["shards"]) for split, rows in index["splits"].items()} == counts
    assert index["rejects"] == 0
    for split in counts:
        stored = ShardSplit.open(tmp_path / "s", split, kind)
        expected = [
            (record.key, text)
            for record in open_source(kind, name, shared_data / folder)
            if record.split == split
            for text in (record.captions or record.questions)
        ]
        found = []
        for item in range(len(stored)):
            sample = stored.read(item)
            found.append((sample.key, sample.question or sample.captions[0]))
        assert found == expected
    assert make_shards(["verify", str(tmp_path / "s")]) == 0
