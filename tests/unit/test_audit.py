"""The audit finds what was planted (rescaled, re-encoded, slightly cropped), excludes it from a build, and nothing else."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from m2i2.cli.audit_leakage import main as audit
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit, read_index


def picture(seed: int) -> Image.Image:
    """A grey picture of smooth blobs, no two alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def altered(image: Image.Image) -> Image.Image:
    width, height = image.size
    cropped = image.crop((round(0.035 * width), round(0.02 * height), round(0.98 * width), round(0.97 * height)))
    small = cropped.resize((round(0.6 * cropped.width), round(0.6 * cropped.height)), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=50)
    return Image.open(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions whose images 0, 1, 2 are also a test set's: the same file, the same pixels as PNG, an altered copy."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "images").mkdir()
    pictures = [picture(seed) for seed in range(12)]
    for number, image in enumerate(pictures):
        image.save(folder / "images" / f"c{number}.png")
    pictures[0].save(folder / "images" / "t0.png")
    pictures[1].save(folder / "images" / "t1.png", compress_level=1)
    altered(pictures[2]).save(folder / "images" / "t2.png")
    for number in range(3, 8):
        picture(100 + number).save(folder / "images" / f"t{number}.png")
    captions = [{"image": f"c{n}.png", "caption": "a picture"} for n in range(12)]
    (folder / "captions.json").write_text(json.dumps(captions))
    rows = [
        {
            "qid": n,
            "image_name": f"t{n}.png",
            "image_organ": "x",
            "answer": "a",
            "answer_type": "OPEN",
            "question_type": "y",
            "question": "q",
            "phrase_type": "freeform",
        }
        for n in range(8)
    ]
    (folder / "testset.json").write_text(json.dumps(rows))
    (folder / "trainset.json").write_text(json.dumps([rows[7] | {"qid": 99, "question": "other"}]))
    keep = ["--keep-bytes", "--workers", "1"]
    assert make_shards([*captions_command(folder), "--output", str(folder / "caps"), *keep]) == 0
    assert make_shards(["vqa", "vqa-rad", str(folder), "--output", str(folder / "vqa"), *keep]) == 0
    return folder


def captions_command(folder: Path) -> list[str]:
    return ["captions", "json", str(folder / "captions.json"), "--image-root", str(folder / "images")]


def test_planted_images_are_found_and_excluded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([str(folder / "caps"), str(folder / "vqa") + ":test", "--output", str(folder / "out")]) == 0
    found = json.loads((folder / "out" / "audit.json").read_text())
    (comparison,) = found["comparisons"]
    assert [(p["first"], p["second"], p["kind"]) for p in comparison["pairs"]] == [
        ("c0", "t0", "bytes"),
        ("c1", "t1", "pixels"),
        ("c2", "t2", "near"),
    ]
    assert [row["key"] for row in found["exclude"]] == ["c0", "c1", "c2"]
    assert Image.open(folder / "out" / "pairs.png").size[0] > 600
    words = [*captions_command(folder), "--exclude", str(folder / "out" / "audit.json"), "--workers", "1"]
    assert make_shards([*words, "--output", str(folder / "without")]) == 0
    split = ShardSplit.open(folder / "without", "train", "captions")
    assert [split.read(i).key for i in range(len(split))] == [f"c{n}" for n in range(3, 12)]
    assert read_index(folder / "without")["left_out"] == {"excluded by the audit": 3}
    assert "left out: 3 x excluded by the audit" in capsys.readouterr().out


def test_a_set_of_questions_is_audited_against_itself(folder: Path) -> None:
    assert audit([str(folder / "vqa"), "--output", str(folder / "self")]) == 0
    found = json.loads((folder / "self" / "audit.json").read_text())
    assert found["comparisons"][0]["images"] == {"bytes": 1}
    assert found["questions"][str(folder / "vqa")]["rewrites_of_test_questions"] == 0


def test_misuse_is_one_paragraph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([str(folder / "caps"), "--output", str(tmp_path / "x")]) == 2
    assert "at least two sets" in capsys.readouterr().err
    assert audit([str(folder / "caps"), str(folder / "vqa") + ":dev", "--output", str(tmp_path / "x")]) == 2
    assert "has no split 'dev'" in capsys.readouterr().err
    (tmp_path / "audit.json").write_text('{"exclude": [{"source": "rocov2", "split": "train", "key": "k"}]}')
    words = [*captions_command(folder), "--exclude", str(tmp_path / "audit.json"), "--output", str(tmp_path / "s")]
    assert make_shards(words) == 2
    assert "excludes no record of json (it lists rocov2)" in capsys.readouterr().err
