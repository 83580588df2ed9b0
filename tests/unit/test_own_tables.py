"""Pairs and questions of one's own, in JSON, JSONL, CSV and TSV."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error
from tests.unit.test_dicom import dicom

ROWS = [
    {"image": "a.png", "question": 'is it "left", or right?', "answer": "left", "answer_type": "CLOSED", "split": "train"},
    {"image": "b.png", "question": "normal?", "answer": "Yes", "split": "test", "question_type": "presence", "id": "q7"},
    {"image": "a.png", "question": "what plane?", "answer": "axial", "split": "train"},
]


def written(folder: Path, ending: str) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (20, 20)).save(folder / f"{name}.png")
    path = folder / f"questions.{ending}"
    if ending == "json":
        path.write_text(json.dumps(ROWS))
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        between = "," if ending == "csv" else "\t"
        names = ["id", "image", "question", "answer", "answer_type", "split", "question_type"]
        quoted = [[row.get(name, "").replace('"', '""') for name in names] for row in ROWS]
        lines = [between.join(f'"{field}"' if field else "" for field in fields) for fields in quoted]
        path.write_text("\n".join([between.join(names), *lines]) + "\n")
    return path


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_the_same_questions_from_every_format(tmp_path: Path, ending: str) -> None:
    source = open_source("vqa", "json", written(tmp_path, ending))
    records = {record.key: record for record in source}
    assert [(r.split, len(r.questions)) for r in records.values()] == [("train", 2), ("test", 1)]
    assert [(q.question, q.answer, q.closed) for q in records["a"].questions] == [
        ('is it "left", or right?', "left", True),
        ("what plane?", "axial", False),
    ]
    (yes,) = records["b"].questions
    assert (yes.id, yes.closed, yes.metadata) == ("q7", True, {"question_type": "presence", "closed_from": "answer"})
    assert list(source.notes.values()) == [2]


def test_captions_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('Image,Caption,Split\nscans/a.dcm,"one, two",train\nscans/b.png,three,val\n')
    records = list(open_source("captions", "json", tmp_path / "pairs.csv"))
    assert [(r.key, r.split, r.captions) for r in records] == [
        ("scans_a", "train", ("one, two",)),
        ("scans_b", "val", ("three",)),
    ]
    assert records[0].image == tmp_path / "scans" / "a.dcm"


def test_dicom_files_become_samples_and_their_headers_stay_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.arange(0, 4096, 16).reshape(16, 16)
    (tmp_path / "a.dcm").write_bytes(dicom(ramp))
    (tmp_path / "b.dcm").write_bytes(dicom(ramp, BurnedInAnnotation="YES", PhotometricInterpretation="MONOCHROME1"))
    (tmp_path / "cut.dcm").write_bytes(dicom(ramp)[:-100])
    (tmp_path / "q.csv").write_text("image,question,answer\na.dcm,q,yes\na.dcm,q,no\nb.dcm,q,no\ncut.dcm,q,no\n")
    words = ["vqa", "json", str(tmp_path / "q.csv"), "--output", str(tmp_path / "s"), "--side", "16", "--quality", "100"]
    assert make_shards(words) == 2, "one of three files is damaged"
    assert "The DICOM file ... cannot be decoded" in capsys.readouterr().err
    words = [*words, "--max-rejects", "0.5", "--workers", "2"]
    assert make_shards(words) == 0, "it goes on where it stopped"
    out = capsys.readouterr().out
    assert "note: 1 x The file says that text is burned into its pixels" in out
    assert "note: 2 x Its header may hold identifiers" in out
    split = ShardSplit.open(tmp_path / "s", "train", "vqa")
    greys = {s.key: np.asarray(Image.open(io.BytesIO(s.image)).convert("L")).astype(int) for s in map(split.read, range(3))}
    assert abs(greys["a"] - ramp / 4080 * 255).max() < 4, "JPEG of quality 100"
    assert abs(greys["b"] - (255 - ramp / 4080 * 255)).max() < 4
    everything = b"".join(path.read_bytes() for path in (tmp_path / "s").iterdir())
    assert b"DOE" not in everything and b"SECRET-4711" not in everything and b"19700101" not in everything


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.json", '[{"image": "a.png", "question": "q"}]', "record 0: the field 'answer' is missing"),
        ("q.csv", "image,question,answer\na.png,q\n", "line 2: 2 fields where the header has 3"),
        ("q.csv", "image,question,answer\n../../x.png,q,a\n", "leads out of"),
        ("q.jsonl", '{"image": "a.png"\n', "line 1 is not valid JSON"),
        ("q.csv", "id,image,question,answer\n1,a.png,q,a\n1,a.png,q,a\n", "the question id '1' comes twice"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(M2I2Error, match="(?i)" + message):
        list(open_source("vqa", "json", tmp_path / name))
