"""Every real data set is read with the counts of its publication."""

import json
from collections import Counter
from pathlib import Path

import pytest

from m2i2.data.records import ImageRecord
from m2i2.data.sources import open_source


def questions(records: list[ImageRecord], split: str) -> int:
    return sum(len(r.questions) for r in records if r.split == split)


def images(records: list[ImageRecord]) -> dict[str, int]:
    return dict(Counter(r.split for r in records))


def test_rocov2(shared_data: Path) -> None:
    records = list(open_source("captions", "rocov2", shared_data / "rocov2_sample"))
    assert images(records) == {"train": 600, "val": 100, "test": 100}
    assert all(isinstance(r.image, Path) and r.image.is_file() and r.captions[0].strip() for r in records)
    assert len({r.key for r in records}) == 800


def test_iu_xray_reports_what_is_not_there(shared_data: Path) -> None:
    source = open_source("captions", "iu-xray", shared_data / "iu_xray_subset")
    records = list(source)
    assert source.left_out["image not in the folder"] == 6616
    without_text = source.left_out["report without findings and impression"]
    assert len(records) + without_text == 850 and without_text < 20
    assert all(r.metadata["projection"] == "Frontal" for r in records)
    lateral = open_source("captions", "iu-xray", shared_data / "iu_xray_subset", projections="lateral")
    assert list(lateral) == []


def test_vqa_rad_both_publications_agree(shared_data: Path) -> None:
    public = list(open_source("vqa", "vqa-rad", shared_data / "vqa_rad"))
    sets = list(open_source("vqa", "vqa-rad", shared_data / "data_RAD"))
    for records in (public, sets):
        assert (questions(records, "train"), questions(records, "test")) == (3064, 451)
        assert len({r.key for r in records}) == 314, "315 images, 314 used"
        test = [q for r in records if r.split == "test" for q in r.questions]
        assert Counter((q.metadata["phrase_type"], q.closed) for q in test) == {
            ("freeform", True): 185,
            ("freeform", False): 123,
            ("para", True): 87,
            ("para", False): 56,
        }
        train = Counter(q.metadata["phrase_type"] for r in records if r.split == "train" for q in r.questions)
        assert train == {"freeform": 1206, "para": 591, "frame": 1267}

    def contents(records: list[ImageRecord]) -> Counter[tuple[str, str, str, str]]:
        return Counter((r.split, r.metadata["image"], q.question.strip(), q.answer) for r in records for q in r.questions)

    assert contents(public) == contents(sets)
    tested = {r.key for r in public if r.split == "test"}
    assert len(tested) == 203 and tested <= {r.key for r in public if r.split == "train"}
    leaking = [q for r in public for q in r.questions if q.metadata.get("framed_from", "").startswith("test_")]
    assert len(leaking) == 284


@pytest.mark.parametrize("variant", ["question_id", "own table"])
def test_vqa_rad_in_the_variants_that_circulate(shared_data: Path, tmp_path: Path, variant: str) -> None:
    sets = {name: json.loads((shared_data / "data_RAD" / f"{name}set.json").read_text()) for name in ("train", "test")}
    for row in sets["test"]:
        row["phrase_type"] = f"test_{row['phrase_type']}"
    if variant == "question_id":
        for name, rows in sets.items():
            (tmp_path / f"{name}set.json").write_text(json.dumps([{**row, "question_id": row.pop("qid")} for row in rows]))
        source = open_source("vqa", "vqa-rad", tmp_path, image_root=shared_data / "vqa_rad" / "VQA_RAD Image Folder")
    else:
        rows = [{**row, "split": {"train": "Training", "test": "testing"}[name]} for name, rows in sets.items() for row in rows]
        (tmp_path / "own.json").write_text(json.dumps(rows))
        source = open_source("vqa", "json", tmp_path / "own.json", image_root=shared_data / "vqa_rad" / "VQA_RAD Image Folder")
    records = list(source)
    assert (questions(records, "train"), questions(records, "test")) == (3064, 451) and not source.notes
    tested = Counter(q.metadata["phrase_type"] for r in records if r.split == "test" for q in r.questions)
    assert tested == {"freeform": 308, "para": 143}
    assert sum(q.metadata.get("framed_from", "").startswith("test_") for r in records for q in r.questions) == 284


def test_slake(shared_data: Path) -> None:
    english = list(open_source("vqa", "slake", shared_data / "slake"))
    assert [questions(english, s) for s in ("train", "val", "test")] == [4919, 1053, 1061]
    assert images(english) == {"train": 450, "val": 96, "test": 96}
    everything = list(open_source("vqa", "slake", shared_data / "slake", language="all"))
    assert sum(questions(everything, s) for s in ("train", "val", "test")) == 14028
    chinese = list(open_source("vqa", "slake", shared_data / "slake", language="zh"))
    english_train = {r.key for r in english if r.split == "train"}
    assert len(english_train & {r.key for r in chinese if r.split == "test"}) == 70


def test_vqa_med_2019(shared_data: Path) -> None:
    records = list(open_source("vqa", "vqa-med-2019", shared_data / "vqa_med_2019"))
    assert [questions(records, s) for s in ("train", "val", "test")] == [12792, 2000, 500]
    assert images(records) == {"train": 3200, "val": 500, "test": 500}
    types = Counter(q.metadata["question_type"] for r in records if r.split == "test" for q in r.questions)
    assert types == dict.fromkeys(("modality", "plane", "organ", "abnormality"), 125)
    assert sum(q.closed for r in records for q in r.questions) == 1560


def test_pathvqa_slice(shared_data: Path) -> None:
    records = list(open_source("vqa", "pathvqa", shared_data / "pathvqa_slice"))
    assert [questions(records, s) for s in ("train", "val", "test")] == [712, 152, 266]
    assert len(records) == 200
    yes_no = [q for r in records for q in r.questions if q.closed]
    assert {q.answer for q in yes_no} == {"yes", "no"}
