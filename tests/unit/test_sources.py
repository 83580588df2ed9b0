"""Readers on malformed input: the error names file and record, and nothing in a file is ever run."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest

from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def rocov2(folder: Path, table: bytes, name: str = "train_captions.csv") -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / name).write_bytes(table)
    return folder


def pathvqa(folder: Path, content: bytes) -> Path:
    (folder / "qas").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / "qas" / f"{split}_vqa.pkl").write_bytes(content)
    return folder


def test_csv_and_tsv_with_quotes_commas_and_newlines(tmp_path: Path) -> None:
    table = 'ID,Caption\nscan.1,"a ""left"", small\nnodule"\nb,plain\n'
    records = list(open_source("captions", "rocov2", rocov2(tmp_path / "csv", table.encode())))
    assert [(r.key, r.captions[0]) for r in records] == [("scan_1", 'a "left", small\nnodule'), ("b", "plain")]
    tsv = rocov2(tmp_path / "tsv", b"ID\tcaption\nx\tone, two\n", "caption_prediction_train.tsv")
    assert [r.captions[0] for r in open_source("captions", "rocov2", tsv)] == ["one, two"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"ID,Text\na,b\n", "no column 'Caption'"),
        (b"ID,Caption\na,b,c\n", "line 2: 3 fields where the header has 2"),
        (b"ID,Caption\n,b\n", "line 2: the ID is empty"),
        (b"ID,Caption\na,\xff\xfe\n", "UTF-8"),
        (b'ID,Caption\na,"b"c\n', "Cannot read"),
        (b"", "no column 'ID'"),
        (b"ID,Caption\n/etc/passwd,b\n", "leads out of"),
    ],
)
def test_malformed_tables(tmp_path: Path, table: bytes, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        list(open_source("captions", "rocov2", rocov2(tmp_path / "data", table)))


def test_pickles_with_classes_are_refused_and_never_run(tmp_path: Path) -> None:
    folder = pathvqa(tmp_path / "data", pickle.dumps([Evil(tmp_path / "marker")]))
    with pytest.raises(M2I2Error, match=r"train_vqa.pkl was refused: it names (posix|nt)\.system"):
        list(open_source("vqa", "pathvqa", folder))
    assert not (tmp_path / "marker").exists()


def _tuple_of_tuples(depth: int) -> bytes:
    """A dictionary whose key takes 2**depth steps to hash."""
    return b"\x80\x04]}(K\x01q\x00" + b"".join(b"h%cK\x00\x86q%c" % (i, i + 1) for i in range(depth)) + b"K\x01ua."


def _list_of_lists(depth: int) -> bytes:
    """A label that takes 2**depth characters to print."""
    value: list[object] = []
    for _ in range(depth):
        value = [value, value]
    return pickle.dumps([{"img_id": "x", "label": value}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable pickle"),
        (b"\x80\x04garbage", "not a readable pickle"),
        (pickle.dumps({"a": 1}), "must hold a list of records"),
        (pickle.dumps([{"img_id": "x"}]), "record 0: 'label' must be an object of one answer"),
        (b"\x80\x04]r\x00\x00\x00\x7f.", "asks for 2130706432 entries"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x7f].", "asks for"),
        (_tuple_of_tuples(60), "holds TUPLE2"),
        (_list_of_lists(60), "must hold a list of records|'label' must be an object"),
    ],
)
def test_malformed_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        list(open_source("vqa", "pathvqa", pathvqa(tmp_path / "data", content)))


def vqa_med_2019(folder: Path) -> Path:
    """The published layout with two images a split, its archives one level down."""
    asked = {"C1_Modality": "what modality?|xr - plain film", "C2_Plane": "which plane?|ap", "C3_Organ": "is it the skull?|no"}
    asked["C4_Abnormality"] = "what is abnormal?|lung, nodule"
    for split, name, images in (("train", "Training", "Train_images"), ("val", "Validation", "Val_images")):
        place = folder / f"ImageClef-2019-VQA-Med-{name}"
        (place / images).mkdir(parents=True)
        (place / "QAPairsByCategory").mkdir()
        for category, text in asked.items():
            (place / "QAPairsByCategory" / f"{category}_{split}.txt").write_text(f"{split}1|{text}\n{split}2|{text}\n")
        for number in (1, 2):
            (place / images / f"{split}{number}.jpg").write_bytes(b"")
    test = folder / "VQAMed2019Test"
    (test / "VQAMed2019_Test_Images").mkdir(parents=True)
    (test / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text("t1|Plane|which plane?|axial\nt2|modality|is it a CT?|yes\n")
    return folder


def test_vqa_med_2019_comes_with_its_categories(tmp_path: Path) -> None:
    folder = vqa_med_2019(tmp_path)
    records = list(open_source("vqa", "vqa-med-2019", folder))
    assert [(r.split, r.key, len(r.questions)) for r in records] == [
        *(("train", f"train{n}", 4) for n in (1, 2)),
        *(("val", f"val{n}", 4) for n in (1, 2)),
        *(("test", f"t{n}", 1) for n in (1, 2)),
    ]
    assert [q.metadata["question_type"] for q in records[0].questions] == ["modality", "plane", "organ", "abnormality"]
    assert [q.closed for q in records[0].questions] == [False, False, True, False]
    assert records[0].image == folder / "ImageClef-2019-VQA-Med-Training" / "Train_images" / "train1.jpg"
    assert [(q.question, q.answer, q.closed, q.metadata) for r in records[4:] for q in r.questions] == [
        ("which plane?", "axial", False, {"question_type": "plane"}),
        ("is it a CT?", "yes", True, {"question_type": "modality"}),
    ]
    assert records[0].questions[3].answer == "lung, nodule"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("C2_Plane_val.txt", "a|b\n", "C2_Plane_val.txt, line 1: 3 texts separated by | were expected: 'a|b'"),
        (
            "VQAMed2019_Test_Questions_w_Ref_Answers.txt",
            "\nt1|size|how large?|big\n",
            "line 2: the category 'size' is not one of modality",
        ),
        ("C1_Modality_train.txt", None, "must hold one file C1_Modality_train.txt, or a questions.csv; there is none"),
    ],
)
def test_what_is_wrong_with_vqa_med_2019_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    (path,) = vqa_med_2019(tmp_path).rglob(file)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(M2I2Error, match=re.escape(message)):
        list(open_source("vqa", "vqa-med-2019", tmp_path))


def test_pathvqa_json_reads_as_the_pickle_does(tmp_path: Path) -> None:
    row = {
        "answer_type": "yes/no",
        "img_id": "train_0001",
        "label": {"yes": 1},
        "question_id": 7,
        "question_type": "is",
        "sent": "is it?",
    }
    records = [list(open_source("vqa", "pathvqa", pathvqa(tmp_path / "pkl", pickle.dumps([row]))))]
    folder = tmp_path / "json"
    (folder / "qas").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / "qas" / f"{split}_vqa.json").write_text(json.dumps([row]))
    records.append(list(open_source("vqa", "pathvqa", folder)))
    first, second = ([(r.split, r.key, r.questions) for r in found] for found in records)
    assert first == second and len(first) == 3 and first[0][2][0].closed and first[0][2][0].answer == "yes"


def test_jsonl_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"image": "a.png", "caption": ["one", "two"]}\n\n{"image": "b.png", "caption": "three"}\n{broken\n')
    with pytest.raises(M2I2Error, match="line 4 is not valid JSON"):
        list(open_source("captions", "json", path))
    path.write_text(path.read_text().replace("{broken\n", ""))
    assert [record.captions for record in open_source("captions", "json", path)] == [("one", "two"), ("three",)]


def test_unknown_names_options_and_paths(tmp_path: Path) -> None:
    with pytest.raises(M2I2Error, match="there are rocov2, iu-xray, json, vqa-text, parquet, datasets, phantoms"):
        open_source("captions", "coco", tmp_path)
    with pytest.raises(M2I2Error, match="slake does not take --projections; it takes --language"):
        open_source("vqa", "slake", tmp_path, projections="all")
    with pytest.raises(M2I2Error, match="needs the path of its data"):
        open_source("vqa", "slake", tmp_path / "nowhere")
    with pytest.raises(M2I2Error, match="holds neither"):
        open_source("vqa", "vqa-rad", tmp_path)


def test_a_missing_pickle_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(M2I2Error, match=r"PathVQA needs it, or the same questions as \.json"):
        list(open_source("vqa", "pathvqa", tmp_path))


def test_names_that_no_key_can_hold_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    names = ["肺.png", "心.png", "a/" * 40 + "x" * 40 + ".png", "b/" * 40 + "x" * 40 + ".png", "scan.1.png"]
    path.write_text(json.dumps([{"image": name, "caption": "c"} for name in names]))
    keys = [record.key for record in open_source("captions", "json", path)]
    assert len(set(keys)) == 5 and keys[4] == "scan_1" and all(key.isascii() and len(key) <= 80 for key in keys)


def test_split_of_json_records(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[{"image": "a.png", "caption": "c"}, {"image": "b.png", "caption": "c", "split": "test"}]')
    assert [r.split for r in open_source("captions", "json", path)] == ["train", "test"]
    assert [r.split for r in open_source("captions", "json", path, split="val")] == ["val", "test"]


def iu_xray(folder: Path, reports: str, images: str) -> Path:
    (folder / images).mkdir(parents=True)
    (folder / images / "1_a.jpg").write_bytes(b"")
    (folder / "indiana_reports.csv").write_text("uid,problems,findings,impression\n" + reports)
    table = "uid,filename,projection\n1,1_a.png,Frontal\n1,1_b.png,Lateral\n"
    (folder / "indiana_projections.csv").write_text(table)
    return folder


@pytest.mark.parametrize("images", ["images_small", "images/images_normalized"])
def test_iu_xray_finds_its_images_and_counts_the_missing(tmp_path: Path, images: str) -> None:
    source = open_source("captions", "iu-xray", iu_xray(tmp_path / "iu", "1,normal, clear lungs ,No disease.\n", images))
    assert [(r.key, r.captions) for r in source] == [("1_a", ("clear lungs No disease.",))]
    assert source.left_out == {"image not in the folder": 1}


def test_iu_xray_reports_come_once(tmp_path: Path) -> None:
    source = open_source("captions", "iu-xray", iu_xray(tmp_path / "iu", "1,a,b,c\n1,d,e,f\n", "images"))
    with pytest.raises(M2I2Error, match=r"indiana_reports.csv, line 3: the uid '1' comes twice"):
        list(source)
