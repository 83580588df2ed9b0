"""The published parquet layouts, made from the real data: through shards they hold what the original files hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.records import ImageRecord, Kind
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources import open_source


def published(records: Iterator[ImageRecord], folder: Path, parts: int = 2) -> None:
    """Files as ``Dataset.push_to_hub`` makes them: one row per question or caption, the image's bytes in every row."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        assert isinstance(record.image, Path)
        image = {"bytes": record.image.read_bytes(), "path": record.image.name}
        rows = splits.setdefault({"val": "validation"}.get(record.split, record.split), [])
        rows += [{"image": image, "question": q.question, "answer": q.answer} for q in record.questions]
        rows += [{"image": image, "image_id": record.key, "caption": c, "cui": ["C1"]} for c in record.captions]
    folder.mkdir()
    for split, rows in splits.items():
        size = -(-len(rows) // parts)
        for part in range(parts):
            table = pa.Table.from_pylist(rows[part * size : (part + 1) * size])
            parquet.write_table(table, folder / f"{split}-{part:05d}-of-{parts:05d}.parquet", row_group_size=100)


@pytest.mark.parametrize(
    ("kind", "name", "folder"),
    [("vqa", "vqa-rad", "data_RAD"), ("vqa", "pathvqa", "pathvqa_slice"), ("captions", "rocov2", "rocov2_sample")],
)
def test_a_published_set_is_the_original_one(shared_data: Path, tmp_path: Path, kind: Kind, name: str, folder: str) -> None:
    originals = list(open_source(kind, name, shared_data / folder))
    published(iter(originals), tmp_path / "data")
    assert make_shards([kind, "parquet", str(tmp_path), "--output", str(tmp_path / "s"), "--side", "64"]) == 0
    for split in {record.split for record in originals}:
        stored = ShardSplit.open(tmp_path / "s", split, kind)
        expected = sorted(
            (record.captions[0], "") if record.captions else (q.question, q.answer)
            for record in originals
            if record.split == split
            for q in record.questions or [None]  # type: ignore[list-item]
        )
        samples = [stored.read(item) for item in range(len(stored))]
        assert expected == sorted((s.question.question, s.question.answer) if s.question else (s.captions[0], "") for s in samples)
        images = sum(record.split == split for record in originals)
        assert len({sample.key for sample in samples}) == images
        for sample in samples:
            if sample.question and name == "pathvqa":
                assert sample.question.closed == (sample.question.answer in ("yes", "no"))
