"""Tables as people have them: read correctly, or refused in a paragraph that names file, place and remedy."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.loading.clean import clean_parts
from m2i2.data.records import ImageRecord, Kind
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error

CASES = Path(__file__).parents[1] / "cases"
TABLES = CASES / "tables"
TWO = [("a", "is it normal?", "yes"), ("b", "what organ?", "liver")]
YES_NO = [("a", "is it?", "yes"), ("b", "is it?", "no")]


def read(kind: Kind, path: Path, **options: Any) -> list[ImageRecord]:
    return list(open_source(kind, "json", path, **options))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, TWO) for name in ("plain.csv", "semicolon.csv", "pipe.csv", "tab.tsv", "tab.txt", "UP.CSV", "sep.csv", "bom.csv")),
        *((name, TWO) for name in ("cr.csv", "crlf.csv", "index.csv", "blank.csv")),
        *((name, YES_NO) for name in ("lines.json", "lines.JSONL", "lines.ndjson", "bom.jsonl")),
        *(
            (name, YES_NO[:1])
            for name in ("case.json", "wrapped.json", "splits.json", "list.json", "split.json", "layouts/llava.json")
        ),
        ("u2028.jsonl", [("a", "is\u2028it?", "yes"), ("b", "is\x85it?", "no")]),
        ("num.json", [("a", "how many?", "2"), ("b", "how many?", "2")]),
        ("uidq.json", [("names_uid_1_2_840_10", "x", "yes"), ("names_uid_1_2_840_11", "x", "no")]),
        ("dot2.json", [("a", "x", "yes"), ("a", "y", "no")]),
        ("layouts/pmcvqa.csv", [("a", "What?", "liver")]),
        ("float.csv", [("a", "how many?", "2.0"), ("b", "how many?", "2")]),
        ("bool.csv", [("a", "is it?", "True"), ("b", "is it?", "FALSE")]),
        ("quote.csv", [("a", 'is it 5" wide?', "yes")]),
        ("multi.csv", [("a", "is it\nnormal?", "yes"), ("b", 'say "what"?', "liver")]),
        ("nan.csv", [("b", "what organ?", "liver")]),
        ("nan2.csv", [("b", "what organ?", "None")]),
        ("null.json", [("b", "is it?", "no")]),
    ],
)
def test_questions(name: str, expected: list[tuple[str, str, str]]) -> None:
    records = read("vqa", TABLES / name)
    assert [(r.key, q.question, q.answer) for r in records for q in r.questions] == expected
    assert {r.split for r in records} == {"train"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dup.json", [("a", ("one", "two"))]),
        ("space.csv", [("a", (" text ",))]),
        ("uid.json", [("names_uid_1_2_840_10", ("x",)), ("names_uid_1_2_840_11", ("y",))]),
        ("win.json", [("names_y", ("one",))]),
        ("layouts/annotation.json", [("a", ("one",)), ("b", ("one",))]),
        ("layouts/metadata.csv", [("a", ("one",)), ("b", ("two",))]),
        ("layouts/metadata.jsonl", [("a", ("one",))]),
        ("layouts/openclip.tsv", [("a", ("one",)), ("b", ("two",))]),
        ("layouts/llava.json", [("a", ("yes",))]),
        ("layouts/ptr.csv", [("ptr", ("x",)), ("a", ("y",))]),
        ("many.json", [("a", ("one",)), ("b", ("one",))]),
        ("noext.json", [("a", ("one",))]),
        ("dot.json", [("a", ("one",)), ("b", ("two",))]),
        ("nfc.json", [("_ber-53c6c0afd759280c", ("one",))]),
        ("capempty.csv", [("a", ("a chest",)), ("b", ("",)), ("c", ("text",)), ("d", ("text two",))]),
    ],
)
def test_captions(name: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    records = read("captions", TABLES / name)
    assert [(r.key, r.captions) for r in records] == expected
    assert all(isinstance(r.image, Path) and r.image.is_file() for r in records)


@pytest.mark.parametrize("name", ["coll1.json", "coll2.json", "coll3.json"])
def test_names_that_would_have_one_key_stay_apart(name: str) -> None:
    one, two = read("captions", TABLES / name)
    assert one.key != two.key and two.key.startswith(one.key) and one.image != two.image
    assert (one.captions, two.captions) == (("x",), ("y",))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("captions", "semicolon.csv", r"has no column 'caption'; it has image, question, answer.*--columns caption=\.\.\."),
        ("captions", "columns.json", r"lists image, question, answer; a list of records was expected.*orient='records'"),
        ("captions", "capnested.json", "record 0: the field 'caption' must be a text or a list of texts"),
        ("captions", "url.json", "is a URL; download the images"),
        ("vqa", "cp1252.csv", "line 3 holds the byte 0xf6, which is not UTF-8"),
        ("vqa", "utf16.csv", "is UTF-16 text"),
        ("vqa", "backslash.csv", "line 2: .*A quote inside a quoted text is written twice"),
        ("vqa", "bool.json", "record 0: the field 'answer' is bool"),
        ("vqa", "dict.json", "record 0: the field 'answer' is dict"),
        ("vqa", "nan.json", "not valid JSON"),
        ("vqa", "type.json", "record 0: the answer type '1' is not known; there are closed"),
        ("vqa", "layouts/albef_vqa.json", "record 0: the field 'answer' is list of 3"),
        ("captions", "layouts/captions.txt", "has no column 'image'; it has ROCO_00001"),
        ("vqa", "layouts/vqamed.txt", r"has no column 'image'; it has synpic1, is it\?, yes"),
        ("vqa", "layouts/t.csv.gz", "is compressed"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(kind: Kind, name: str, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        read(kind, TABLES / name)


def test_separators_are_named() -> None:
    source = open_source("vqa", "json", TABLES / "pipe.csv")
    assert list(source) and source.notes["table whose fields are separated by pipes"] == 1


@pytest.mark.parametrize("name", ["uni.json", "übung.json"])
def test_letters_of_other_languages_stay_in_texts_and_file_names(name: str) -> None:
    found = [(r.split, q.question, q.answer) for r in read("vqa", CASES / name) for q in r.questions]
    assert found == [
        ("train", "Qué órgano — 器官?", "hígado"),
        ("train", "ist es normal?", "ja"),
        ("test", "Qué — 器官?", "hígado"),
    ]


@pytest.mark.parametrize("name", ["only-test", "only-testing"])
def test_a_table_without_a_val_split(name: str) -> None:
    assert Counter(r.split for r in read("vqa", CASES / "splits" / f"{name}.csv")) == {"train": 20, "test": 10}


@pytest.mark.parametrize("name", ["validation-test", "valid-test", "dev-test", "val-test", "val-testing"])
def test_every_name_of_a_split_is_ours(name: str) -> None:
    counts = Counter(r.split for r in read("vqa", CASES / "splits" / f"{name}.csv"))
    assert counts == {"train": 16, "val": 4, "test": 4}


def test_clean_selects_by_the_val_split_whatever_it_is_called(tmp_path: Path) -> None:
    words = ["vqa", "json", str(CASES / "splits" / "validation-test.csv"), "--output", str(tmp_path / "s"), "--side", "16"]
    assert make_shards([*words, "--workers", "1"]) == 0
    assert clean_parts(tmp_path / "s", 0.1).counts["selection"].startswith("the data set's own val split")


@pytest.mark.parametrize("name", ["holdout", "testmini", "train2", ""])
def test_unknown_splits_are_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"image": "a.png", "caption": "x", "split": name}]))
    with pytest.raises(M2I2Error, match="is not known; the names of splits are train, training, val, valid, "):
        read("captions", tmp_path / "t.json")


@pytest.mark.parametrize(
    ("word", "closed"),
    [
        ("closed-ended", True),
        ("Y/N", True),
        ("YES/NO", True),
        ("CLOSED ", True),
        ("open_ended", False),
        ("OPEN", False),
        ("", None),
    ],
)
def test_answer_types(tmp_path: Path, word: str, closed: bool | None) -> None:
    row = {"image": b"x", "question": "q", "answer": "yes", "answer_type": word}
    (tmp_path / "t.json").write_text(json.dumps([{**row, "image": "a.png"}]))
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    for name, path in (("json", tmp_path / "t.json"), ("parquet", tmp_path / "train.parquet")):
        (record,) = open_source("vqa", name, path)
        assert record.questions[0].closed is (True if closed is None else closed)
        assert ("closed_from" in record.questions[0].metadata) == (closed is None)


def test_columns_of_other_names_in_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("scan;finding;fold\n a.png ;one;Training\nb.png;two;dev\nc.png;three;Training\n")
    (tmp_path / "t.json").write_text(json.dumps([{"Scan": "a.png", "finding": "one", "fold": "train"}]))
    options = {"columns": "image=scan,caption=finding,split=fold"}
    records = read("captions", tmp_path / "t.csv", **options)
    assert [(r.key, r.split, r.captions) for r in records] == [
        ("a", "train", ("one",)),
        ("c", "train", ("three",)),
        ("b", "val", ("two",)),
    ]
    assert [(r.key, r.split, r.captions) for r in read("captions", tmp_path / "t.json", **options)] == [("a", "train", ("one",))]
    with pytest.raises(M2I2Error, match=r"t\.csv has no column 'picture'; it has scan, finding, fold\. .*--columns image=\.\.\."):
        read("captions", tmp_path / "t.csv", columns="image=picture,caption=finding")
    with pytest.raises(M2I2Error, match=r"--columns split=folds: no record of .* has a field of that name"):
        read("captions", tmp_path / "t.json", columns="image=scan,caption=finding,split=folds")
    with pytest.raises(M2I2Error, match="write OURS=THEIRS"):
        read("captions", tmp_path / "t.csv", columns="picture=scan")


def test_absolute_paths_below_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "images" / "a.png")
    (tmp_path / "t.json").write_text(json.dumps([{"image": str(tmp_path / "images" / "a.png"), "caption": "x"}]))
    (record,) = read("captions", tmp_path / "t.json", image_root=tmp_path / "images")
    assert record.key == "a" and record.image == tmp_path / "images" / "a.png"
    with pytest.raises(M2I2Error, match="leads out of"):
        read("captions", tmp_path / "t.json", image_root=CASES)


def rejects(folder: Path) -> list[tuple[str, str, str]]:
    rows = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return [(row["key"], row["question"], row["reason"]) for row in rows]


def test_empty_captions_and_answers_are_rejected_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = ["--side", "16", "--workers", "1", "--max-rejects", "0.9"]
    captions = ["captions", "json", str(TABLES / "capempty.json"), "--output", str(tmp_path / "c"), *tail]
    assert make_shards(captions) == 0
    assert rejects(tmp_path / "c") == [(key, "", "empty caption") for key in "bcd"]
    assert make_shards(["captions", "json", str(TABLES / "punct.json"), "--output", str(tmp_path / "p"), *tail]) == 0
    assert rejects(tmp_path / "p") == [(key, "", "caption without words") for key in "ab"]
    assert make_shards(["captions", "json", str(TABLES / "capkey.json"), "--output", str(tmp_path / "k"), *tail]) == 0
    assert "note: 1 x 1 of its captions without words left out" in capsys.readouterr().out
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,one,yes\na.png,two,\nb.png,three,nan\nb.png,,no\n")
    for name in "ab":
        Image.new("L", (20, 20)).save(tmp_path / f"{name}.png")
    questions = ["vqa", "json", str(tmp_path / "q.csv"), "--output", str(tmp_path / "q"), *tail]
    assert make_shards(questions) == 0
    assert rejects(tmp_path / "q") == [
        ("a", "record-3", "empty answer"),
        ("b", "record-4", "empty answer"),
        ("b", "record-5", "empty question"),
        ("b", "", "empty answer"),
    ]
    assert [q.question.question for q in ShardSplit.open(tmp_path / "q", "train", "vqa").questions()] == ["one"]
    assert make_shards(questions) == 0, "a finished folder is recognised"
    strict = [*questions[:4], str(tmp_path / "strict"), "--side", "16", "--workers", "1", "--max-rejects", "0.6"]
    assert make_shards(strict) == 2
    assert "1 of 2 records and 3 of 4 questions were rejected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captions", "phantoms", "--count", "0"], "--count 0 leaves no image to train on"),
        (["vqa", "phantoms", "--count", "0"], "--count 0 leaves no image to train on"),
    ],
)
def test_count_0(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert make_shards([*words, "--output", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_train_split_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,caption,split\ngone.png,x,train\na.png,y,val\n")
    words = ["captions", "json", str(tmp_path / "t.csv"), "--output", str(tmp_path / "s"), "--max-rejects", "1", "--workers", "1"]
    assert make_shards(words) == 2
    assert "All records of the split train were rejected" in capsys.readouterr().err
    for name in ("train", "validate", "test"):
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(M2I2Error, match="The split train holds no question"):
        list(open_source("vqa", "slake", tmp_path))


def rad(qid: int, image: int, question: str, answer: str, kind: str) -> dict[str, Any]:
    return {"qid": qid, "image_name": f"synpic{image}.jpg", "question": question, "answer": answer, "phrase_type": kind}


RAD_TRAIN = [
    *(rad(10 * i + 1, i % 5, f"what is {i}", f"answer {i}", "freeform") for i in range(5)),
    *(rad(10 * i + 2, i % 5, f"what is/are {i}", f"answer {i}", "frame") for i in range(5)),
    *(rad(100 + 10 * i + 2, i, f"where is/are {i}", f"place {i}", "frame") for i in range(3)),
]
RAD_TEST = [rad(100 + 10 * i + 1, i, f"where is {i}", f"place {i}", "test_freeform" if i else "test_para") for i in range(3)]


@pytest.mark.parametrize("variant", ["published", "question_id", "own table"])
def test_variants_of_vqa_rad_keep_the_rewrites_known(tmp_path: Path, variant: str) -> None:
    for number in range(5):
        Image.new("L", (20, 20), number * 40).save(tmp_path / f"synpic{number}.jpg")
    sets = {
        "train": [dict(row, answer_type="OPEN") for row in RAD_TRAIN],
        "test": [dict(row, answer_type="OPEN") for row in RAD_TEST],
    }
    if variant == "question_id":
        sets = {name: [{"question_id": row.pop("qid"), **row} for row in rows] for name, rows in sets.items()}
    if variant == "own table":
        rows = [{**row, "split": name} for name, rows in sets.items() for row in rows]
        (tmp_path / "own.json").write_text(json.dumps(rows))
        words = ["vqa", "json", str(tmp_path / "own.json")]
    else:
        for name, rows in sets.items():
            (tmp_path / f"{name}set.json").write_text(json.dumps(rows))
        words = ["vqa", "vqa-rad", str(tmp_path), "--image-root", str(tmp_path)]
    assert make_shards([*words, "--output", str(tmp_path / "s"), "--side", "16", "--workers", "1"]) == 0
    assert clean_parts(tmp_path / "s", 0).counts["rewrites_of_test_questions"] == 3
    assert len(clean_parts(tmp_path / "s", 0).train) == 10
    tested = ShardSplit.open(tmp_path / "s", "test", "vqa").questions()
    assert Counter(q.question.metadata["phrase_type"] for q in tested) == {"freeform": 2, "para": 1}


def test_clean_refuses_vqa_rad_whose_ids_tell_nothing(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("L", (20, 20), number * 40).save(tmp_path / f"synpic{number}.jpg")
    rows = [{**row, "split": name} for name, rows in (("train", RAD_TRAIN), ("test", RAD_TEST)) for row in rows]
    renumbered = [{**row, "qid": number} for number, row in enumerate(rows)]
    (tmp_path / "own.json").write_text(json.dumps(renumbered))
    source = open_source("vqa", "json", tmp_path / "own.json")
    assert list(source) and any("cannot know the rewrites of test questions" in note for note in source.notes)
    words = ["vqa", "json", str(tmp_path / "own.json"), "--output", str(tmp_path / "s"), "--side", "16", "--workers", "1"]
    assert make_shards(words) == 0
    with pytest.raises(M2I2Error, match="do not say which record they were made from"):
        clean_parts(tmp_path / "s", 0)
    (tmp_path / "own.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "phrase_type"} for row in rows]))
    source = open_source("vqa", "json", tmp_path / "own.json")
    assert list(source) and any("without phrase_type: the protocol clean cannot know" in note for note in source.notes)
    (tmp_path / "own.json").write_text(json.dumps([dict(row, split="train") for row in rows]))
    with pytest.raises(M2I2Error, match="says that VQA-RAD has it in its test set"):
        list(open_source("vqa", "json", tmp_path / "own.json"))
