"""Parquet files with images inside, in the layouts of the hub: read row by row, and refused where they are damaged."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def embedded(seed: int) -> dict[str, Any]:
    """An image as the hub's Image feature stores it."""
    return {"bytes": picture(seed), "path": None}


def write(folder: Path, name: str, rows: list[dict[str, Any]], group: int = 3) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def questions(images: list[int], start: int = 0) -> list[dict[str, Any]]:
    """One row per question, as in flaviagiammarino/vqa-rad: the image repeated, nothing that says closed or open."""
    answers = ("yes", "left lung", "No", "axial")
    return [
        {"image": embedded(image), "question": f"question {start + i}?", "answer": answers[(start + i) % 4]}
        for i, image in enumerate(images)
    ]


def test_questions_meet_under_their_image_across_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "vqa-rad"
    write(data, "data/train-00000-of-00002-eb8844602202be60.parquet", questions([0, 1, 0, 2]))
    write(data, "data/train-00001-of-00002-0123456789abcdef.parquet", questions([2, 3], 4))
    write(data, "data/test-00000-of-00001-e5bc3d208bb4deeb.parquet", questions([1, 1]))
    words = ["vqa", "parquet", str(data), "--output", str(tmp_path / "shards"), "--side", "32"]
    assert make_shards(words) == 0
    out = capsys.readouterr().out
    assert "train: 4 images, 6 items" in out and "test: 1 images, 2 items" in out
    assert "note: 8 x question taken as closed where its answer is yes or no" in out
    assert list(read_index(tmp_path / "shards")["notes"].values()) == [8]
    train = ShardSplit.open(tmp_path / "shards", "train", "vqa")
    found = [
        (q.id, q.question, q.answer, q.closed, q.metadata["closed_from"]) for q in (asked.question for asked in train.questions())
    ]
    order = [0, 2, 1, 3, 4, 5]  # by image, in the order in which the images first appear
    answers = ("yes", "left lung", "No", "axial", "yes", "left lung")
    assert found == [(f"train-{i:06d}", f"question {i}?", answers[i], i in (0, 2, 4), "answer") for i in order]
    assert len({train.read(i).image_sha256 for i in range(6)}) == 4
    assert make_shards(words) == 0, "a complete folder is recognised"
    assert "complete already" in capsys.readouterr().out


def test_columns_that_the_data_has_are_used(tmp_path: Path) -> None:
    row = {"image": embedded(0), "qid": 7, "question": "which organ?", "answer": "yes", "answer_type": "OPEN"}
    write(tmp_path, "default/validation/0000.parquet", [row | {"content_type": "Organ", "location": "Chest", "q_lang": "en"}])
    source = open_source("vqa", "parquet", tmp_path)
    (record,) = list(source)
    assert record.split == "val" and not source.notes
    (question,) = record.questions
    assert (question.id, question.closed) == ("7", False)
    assert dict(question.metadata) == {"question_type": "Organ", "organ": "Chest", "language": "en"}


def test_captions_with_ids_lists_and_other_names(tmp_path: Path) -> None:
    rows = [
        {"image": embedded(0), "image_id": "ROCOv2_2023_train_000001", "caption": "a chest CT", "cui": ["C0040405", "C0817096"]},
        {"image": embedded(1), "image_id": "ROCOv2_2023_train_000002", "caption": None, "cui": []},
        {"image": {"bytes": None, "path": None}, "image_id": "x", "caption": "no picture", "cui": []},
    ]
    data = write(tmp_path / "roco", "data/train-00000-of-00001.parquet", rows).parents[1]
    first = next(iter(open_source("captions", "parquet", data)))
    assert (first.key, first.captions) == ("ROCOv2_2023_train_000001", ("a chest CT",))
    assert first.metadata["cui"] == "C0040405 C0817096"
    words = ["captions", "parquet", str(data), "--output", str(tmp_path / "s"), "--side", "32"]
    assert make_shards(words) == 2, "two of three records are rejected"
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()]
    assert reasons == ["empty caption", "no image"]
    rows = [{"scan": picture(0), "findings": ["one", "two"]}, {"scan": picture(0), "findings": ["three"]}]
    data = write(tmp_path / "other", "train-00000-of-00001.parquet", rows).parent
    with pytest.raises(M2I2Error, match=r"has no column 'image'; it has scan, findings\. .* --columns image=\.\.\."):
        list(open_source("captions", "parquet", data))
    source = open_source("captions", "parquet", data, columns="image=scan,caption=findings")
    assert [(r.key, r.captions) for r in source] == [("row-00000000", ("one", "two")), ("row-00000001", ("three",))]


def test_images_beside_the_files(tmp_path: Path) -> None:
    (tmp_path / "imgs" / "xmlab0").mkdir(parents=True)
    (tmp_path / "imgs" / "xmlab0" / "source.jpg").write_bytes(picture(0))
    rows = [{"img": "xmlab0/source.jpg", "question": f"q{i}", "answer": "a", "answer_type": "CLOSED"} for i in range(2)]
    file = write(tmp_path, "test-00000-of-00001.parquet", rows)
    (record,) = open_source("vqa", "parquet", file, image_root=tmp_path / "imgs", columns="image=img")
    assert record.image == tmp_path / "imgs" / "xmlab0" / "source.jpg" and record.key == "xmlab0_source"
    assert [q.closed for q in record.questions] == [True, True]
    write(tmp_path / "evil", "test-00000-of-00001.parquet", [{"image": "../../etc/passwd", "question": "q", "answer": "a"}])
    with pytest.raises(M2I2Error, match="leads out of"):
        list(open_source("vqa", "parquet", tmp_path / "evil"))


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cut", "train-00000-of-00001.parquet", questions([0, 1, 2]))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1" * 9, b"RIFF" + whole[4:-4] + b"RIFF"):
        path.write_bytes(content)
        with pytest.raises(M2I2Error, match=r"train-00000-of-00001\.parquet is not a readable parquet file .*Download it again"):
            list(open_source("vqa", "parquet", path.parent))
    write(tmp_path / "part", "train-00000-of-00003.parquet", questions([0]))
    write(tmp_path / "part", "train-00002-of-00003.parquet", questions([1]))
    with pytest.raises(M2I2Error, match="lacks part 00001 of 00003 of train"):
        open_source("vqa", "parquet", tmp_path / "part")
    write(tmp_path / "name", "extra-00000-of-00001.parquet", questions([0]))
    with pytest.raises(M2I2Error, match="does not tell its split"):
        open_source("vqa", "parquet", tmp_path / "name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(M2I2Error, match="holds no parquet files"):
        open_source("vqa", "parquet", tmp_path / "empty")
    bad = write(tmp_path / "type", "train-00000-of-00001.parquet", [{"image": 3, "question": "q", "answer": "a"}])
    with pytest.raises(M2I2Error, match="row 0: the image is int"):
        list(open_source("vqa", "parquet", bad))
    null = write(tmp_path / "null", "train-00000-of-00001.parquet", [{"image": picture(0), "question": None, "answer": "a"}] * 2)
    (record,) = open_source("vqa", "parquet", null)
    assert not record.questions and [why for _, why in record.passed_over] == ["empty question"] * 2
    with pytest.raises(M2I2Error, match="write OURS=THEIRS"):
        open_source("vqa", "parquet", null, columns="picture=x")


_MEASURE = """
import sys
from pathlib import Path
from m2i2.data.sources import open_source
import pyarrow.parquet
def peak():  # of this program alone; getrusage would count its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
print(sum(len(record.image) for record in open_source(sys.argv[1], "parquet", Path(sys.argv[2]))), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["captions", "vqa"])
def test_memory_is_that_of_a_row_group_and_not_of_the_file(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0)
    texts = {"caption": "c"} if kind == "captions" else {"question": "q", "answer": "a"}
    columns = {"image": [{"bytes": noise.bytes(1 << 20), "path": None} for _ in range(256)]}
    columns |= {name: [value] * 256 for name, value in texts.items()}
    parquet.write_table(pa.table(columns), tmp_path / "train-00000-of-00001.parquet", row_group_size=8, compression="none")
    del columns
    done = subprocess.run([sys.executable, "-c", _MEASURE, kind, str(tmp_path)], capture_output=True, text=True, check=True)
    read, grown = map(int, done.stdout.split())
    assert read == 256 << 20
    assert grown < 128 << 20, f"{grown / (1 << 20):.0f} MiB"
