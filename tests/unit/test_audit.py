"""The audit finds what was planted, in whole or in part, and nothing else; a build leaves out what it lists, whatever its name."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from m2i2.cli.audit_leakage import main as audit
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.evaluation import leakage


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


def beside_another(image: Image.Image) -> Image.Image:
    panels = Image.new("L", (600, 260))
    panels.paste(image, (0, 0))
    panels.paste(picture(999), (300, 0))
    return panels


PLANTED: list[tuple[Callable[[Image.Image], Image.Image], str, str]] = [
    (lambda image: image, "bytes", ""),
    (lambda image: image, "pixels", ""),
    (altered, "near", ""),
    (ImageOps.mirror, "near", "mirrored"),
    (lambda image: image.transpose(Image.Transpose.ROTATE_270), "near", "turned by 90 degrees"),
    (lambda image: ImageOps.invert(ImageOps.flip(image)), "near", "mirrored, turned by 180 degrees, inverted"),
    (lambda image: image.rotate(-4, Image.Resampling.BICUBIC), "near", "turned by 4 degrees"),
    (lambda image: image.crop((90, 100, 270, 256)), "part", ""),
    (lambda image: ImageOps.expand(image, (60, 20, 10, 90), 255), "near", ""),
    (beside_another, "part", ""),
]
"""What is done to captioned image n to make test image n of it, and what the audit must call it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions on images c0 to c13, of which a test set holds ten as t0 to t9 (`PLANTED`), besides four others."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "images").mkdir()
    pictures = [picture(seed) for seed in range(14)]
    for number, image in enumerate(pictures):
        image.save(folder / "images" / f"c{number}.png")
    for number, (change, kind, _) in enumerate(PLANTED):
        change(pictures[number]).save(folder / "images" / f"t{number}.png", compress_level=1 if kind == "pixels" else 6)
    for number in range(len(PLANTED), 14):
        picture(100 + number).save(folder / "images" / f"t{number}.png")
    write_captions(folder / "captions.json", [f"c{n}.png" for n in range(14)])
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
        for n in range(14)
    ]
    (folder / "testset.json").write_text(json.dumps(rows))
    (folder / "trainset.json").write_text(json.dumps([rows[13] | {"qid": 99, "question": "other"}]))
    assert make_shards([*captions_command(folder), "--output", str(folder / "caps")]) == 0
    assert make_shards([*questions_command(folder), "--output", str(folder / "vqa")]) == 0
    assert audit([str(folder / "caps"), str(folder / "vqa"), "--output", str(folder / "out"), "--workers", "1"]) == 0
    return folder


def write_captions(path: Path, images: list[str]) -> None:
    path.write_text(json.dumps([{"image": name, "caption": "a picture"} for name in images]))


def captions_command(folder: Path, name: str = "captions", images: str = "images") -> list[str]:
    root = ["--image-root", str(folder / images), "--keep-bytes", "--workers", "1"]
    return ["captions", "json", str(folder / f"{name}.json"), *root]


def questions_command(folder: Path) -> list[str]:
    return ["vqa", "vqa-rad", str(folder), "--keep-bytes", "--workers", "1"]


def keys(folder: Path) -> list[str]:
    split = ShardSplit.open(folder, "train", "captions")
    return [split.read(item).key for item in range(len(split))]


def test_planted_images_are_found(folder: Path) -> None:
    found = json.loads((folder / "out" / "audit.json").read_text())
    pairs = {(c["first"].rpartition(":")[2], c["second"].rpartition(":")[2]): c["pairs"] for c in found["comparisons"]}
    seen = [(p["first"], p["second"], p["kind"], p["change"]) for p in found["comparisons"][1]["pairs"]]
    assert seen == [(f"c{n}", f"t{n}", kind, change) for n, (_, kind, change) in enumerate(PLANTED)], pairs
    assert [row["key"] for row in found["exclude"]] == [f"c{n}" for n in range(len(PLANTED))]
    assert Image.open(folder / "out" / "pairs.png").size[0] > 600


def test_borders_of_one_grey_do_not_hide_an_image() -> None:
    """Smooth images have few features, so that only whole images show what is the same."""
    smooth = [picture(seed).filter(ImageFilter.GaussianBlur(25)) for seed in range(4)]
    blank, marked = Image.new("L", (300, 260), 7), Image.new("L", (300, 260))
    marked.paste(255, (20, 30, 40, 70))
    framed = [ImageOps.expand(ImageOps.expand(image, (30, 0, 0, 80), 255), (0, 50, 60, 0)) for image in smooth]
    first, second = (
        [leakage.audited(str(n), f"{name} {n}", image.convert("RGB")) for n, image in enumerate([*images, blank, marked])]
        for name, images in (("plain", smooth), ("framed", framed))
    )
    pairs = [(pair.first, pair.second, pair.kind) for pair in leakage.matches(first, second)]
    assert pairs == [*((n, n, "near") for n in range(4)), (4, 4, "pixels"), (5, 5, "pixels")]
    assert first[0].thumbnail.size == second[0].thumbnail.size == (128, 111)
    assert first[4].thumbnail.size == first[5].thumbnail.size == (128, 111), "whole: nothing, or too little, is no border"


def test_one_process_and_several_find_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_LEAST_PORTION", 3)
    sets = [leakage.read_set(folder / name, split, workers=2) for name, split in (("caps", "train"), ("vqa", "test"))]
    alone, together = (leakage.matches(sets[0].images, sets[1].images, workers) for workers in (1, 3))
    assert len(alone) == len(PLANTED) and alone == together


def test_a_build_leaves_out_the_listed_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*captions_command(folder), "--exclude", str(folder / "out" / "audit.json"), "--output", str(folder / "without")]
    assert make_shards(words) == 0
    assert keys(folder / "without") == [f"c{n}" for n in range(len(PLANTED), 14)]
    assert read_index(folder / "without")["left_out"] == {"excluded by the audit": 10}
    assert "left out: 10 x excluded by the audit" in capsys.readouterr().out
    assert make_shards(words) == 0
    assert "is complete already" in capsys.readouterr().out


def test_images_are_excluded_by_what_they_are_not_by_their_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another set with equal names loses none and the build fails; a renamed subset loses the right ones."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        picture(500 + number).save(tmp_path / "images" / f"c{number}.png")
    write_captions(tmp_path / "captions.json", [f"c{n}.png" for n in range(5)])
    exclude = ["--exclude", str(folder / "out" / "audit.json")]
    assert make_shards([*captions_command(tmp_path), *exclude, "--output", str(tmp_path / "other")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "lists 10 images" in told and "json holds none of them" in told and not (tmp_path / "other" / "index.json").exists()
    for name, original in (("x0", "c11"), ("c1", "c12"), ("x2", "c3")):
        shutil.copy(folder / "images" / f"{original}.png", tmp_path / "images" / f"{name}.png")
    write_captions(tmp_path / "renamed.json", ["x0.png", "c1.png", "x2.png"])
    assert make_shards([*captions_command(tmp_path, "renamed"), *exclude, "--output", str(tmp_path / "renamed")]) == 0
    assert keys(tmp_path / "renamed") == ["x0", "c1"]
    assert f"9 x image of {folder / 'caps'}:train that the audit lists and this build does not hold" in capsys.readouterr().out


def test_a_killed_build_goes_on_with_its_exclusions(folder: Path, tmp_path: Path) -> None:
    words = [*captions_command(folder), "--exclude", str(folder / "out" / "audit.json"), "--samples-per-shard", "4"]
    assert make_shards([*words, "--output", str(tmp_path / "whole")]) == 0
    broken = folder / "images" / "c13.png"
    content = broken.read_bytes()
    broken.unlink()
    assert make_shards([*words, "--output", str(tmp_path / "killed")]) == 2, "one of 14 is rejected"
    broken.write_bytes(content)
    assert make_shards([*words, "--output", str(tmp_path / "killed")]) == 0
    assert read_index(tmp_path / "killed") == read_index(tmp_path / "whole")


def test_a_sets_own_training_images_are_excluded_by_name_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vqa, out = str(folder / "vqa"), folder / "self"
    assert audit([vqa, "--output", str(out), "--workers", "1"]) == 0
    assert f"--within {vqa} lists it" in " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "audit.json").read_text())
    assert found["comparisons"][0]["images"] == {"bytes": 1} and found["exclude"] == []
    assert found["questions"][vqa]["rewrites_of_test_questions"] == 0
    exclude = [*questions_command(folder), "--exclude", str(out / "audit.json"), "--output", str(folder / "vqa_without")]
    assert make_shards(exclude) == 2
    assert "lists no image to exclude" in capsys.readouterr().err
    assert audit([vqa, "--within", vqa, "--output", str(out), "--workers", "1"]) == 0
    assert [row["key"] for row in json.loads((out / "audit.json").read_text())["exclude"]] == ["t13"]


def test_misuse_is_one_paragraph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(words: list[str], program: Callable[[list[str]], int] = audit) -> str:
        assert program(words) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "at least two sets" in refused([str(folder / "caps"), "--output", str(tmp_path / "x")])
    assert "has no split 'dev'" in refused([str(folder / "caps"), f"{folder / 'vqa'}:dev", "--output", str(tmp_path / "x")])
    within = ["--within", str(tmp_path), "--output", str(tmp_path / "x")]
    assert "is none of the audited folders" in refused([str(folder / "caps"), str(folder / "vqa"), *within])
    output = ["--output", str(tmp_path / "s")]
    exclude = ["--exclude", str(folder / "out" / "audit.json"), *output]
    assert "excludes no image of vqa shards" in refused([*questions_command(folder), *exclude], make_shards)
    told = refused([*captions_command(folder)[:-3], *exclude], make_shards)
    assert "keep_bytes True" in told and "keep_bytes False" in told and "Build with the same" in told
    (tmp_path / "audit.json").write_text('{"exclude": [{"source": "rocov2", "split": "train", "key": "k"}]}')
    told = refused([*captions_command(folder), "--exclude", str(tmp_path / "audit.json"), *output], make_shards)
    assert "is not an audit of this version" in told
