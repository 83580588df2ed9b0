"""Damaged data, met by the launcher or by the shard builder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit
from tests.faults.runs import SETTINGS, items, lines
from tests.launching import launch


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "captions"))


def refuse(damaged: Path, folder: Path, *words: str) -> str:
    """What pretraining on damaged shards says when it refuses them."""
    done = launch("pretrain", ["--shards", damaged, *SETTINGS, *words], folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_truncated_tar(damaged: Path, tmp_path: Path) -> None:
    tar = damaged / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-2048])
    assert "train-000001.tar has" in (error := refuse(damaged, tmp_path)) and "truncated" in error


def test_missing_shard(damaged: Path, tmp_path: Path) -> None:
    (damaged / "train-000002.tar").unlink()
    assert "train-000002.tar of the index cannot be read: No such file" in refuse(damaged, tmp_path)


def test_stale_index(damaged: Path, tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "older"), "--count", "80", "--side", "40", "--samples-per-shard", "20"]
    assert make_shards(["captions", "phantoms", *words]) == 0
    shutil.copy(tmp_path / "older" / "index.json", damaged / "index.json")
    assert "the index is stale" in refuse(damaged, tmp_path)


def flip(folder: Path, item: int) -> None:
    """Flip a byte in the image of an item of the split train."""
    split = ShardSplit.open(folder, "train", "captions")
    tar = folder / split.shards[int(split.items[item]["shard"])].file
    data = bytearray(tar.read_bytes())
    data[int(split.items[item]["image_offset"]) + 100] ^= 1
    tar.write_bytes(data)


def test_flipped_byte(damaged: Path, undisturbed: Path, tmp_path: Path) -> None:
    flip(damaged, 11)
    assert make_shards(["verify", str(damaged)]) == 2
    done = launch("pretrain", ["--shards", damaged, *SETTINGS, "data.max_unreadable=0.02", "training.max_steps=5"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Unreadable, replaced by another sample (1 so far" in done.stdout
    (row,) = lines(tmp_path / "run" / "unreadable.jsonl")
    assert row["item"] == 11 and "holds damaged bytes at offset" in row["reason"]
    found, expected = ([item for step in items(run)[:5] for item in step] for run in (tmp_path / "run", undisturbed))
    assert [place for place in range(80) if found[place] != expected[place]] == [expected.index(11)]


def test_more_unreadable_samples_than_allowed(damaged: Path, tmp_path: Path) -> None:
    for item in (3, 40):
        flip(damaged, item)
    error = refuse(damaged, tmp_path)
    assert "of 80 samples cannot be read, more than data.max_unreadable=0.01" in error
    assert "unreadable.jsonl lists them" in error


def test_nothing_but_unreadable_samples(damaged: Path, tmp_path: Path) -> None:
    for item in range(80):
        flip(damaged, item)
    assert "17 samples in a row could not be read; the first: " in refuse(damaged, tmp_path)


def test_images_and_captions_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("good", "corrupt", "silent"):
        Image.fromarray(noise).save(tmp_path / f"{name}.jpg")
    corrupt = (tmp_path / "corrupt.jpg").read_bytes()
    (tmp_path / "corrupt.jpg").write_bytes(corrupt[: len(corrupt) // 2])
    Image.new("1", (10_001, 10_000)).save(tmp_path / "huge.png")
    names = {"good.jpg": "a scan", "corrupt.jpg": "half a file", "silent.jpg": " \n", "huge.png": "100 megapixels"}
    records = [{"image": name, "caption": caption} for name, caption in names.items()]
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    words = ["captions", "json", str(tmp_path / "pairs.json"), "--output", str(tmp_path / "shards"), "--side", "32"]
    assert make_shards(words) == 2
    assert "3 of 4 records were rejected, more than --max-rejects 0.01" in capsys.readouterr().err
    assert make_shards([*words, "--max-rejects", "0.75"]) == 0
    reasons = {row["key"]: row["reason"] for row in lines(tmp_path / "shards" / "rejects.jsonl")}
    assert "cannot be decoded" in reasons["corrupt"]
    assert "empty caption" in reasons["silent"]
    assert "has 10001 x 10000 pixels, more than the bound of 100000000" in reasons["huge"]
    assert len(ShardSplit.open(tmp_path / "shards", "train", "captions")) == 1
