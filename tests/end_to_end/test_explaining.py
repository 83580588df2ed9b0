"""Grad-CAM of the demo model, which was really trained: it looks at the lesion when it answers questions about the lesion."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.gradcam import main
from m2i2.cli.make_shards import main as make_shards
from m2i2.demo import FOLDER
from m2i2.inference.localisation import localise
from m2i2.workflows.answering import load_model
from tests.phantom_model import TEST_IMAGES, lesion_questions, phantoms, write_as_slake

ANSWERS = ("nodule", "cyst", "mass", "left", "right", "upper", "lower")


@pytest.fixture(scope="module")
def slake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in SLAKE's layout."""
    folder = tmp_path_factory.mktemp("slake")
    write_as_slake(folder)
    return folder


def test_the_maps_of_right_answers_lie_on_the_lesion() -> None:
    answerer = load_model(FOLDER).answerer(ANSWERS)
    asked, found = 0, []
    for phantom in phantoms("test", TEST_IMAGES):
        image = Image.fromarray(phantom.image).convert("RGB")
        for question, truth in lesion_questions(phantom):
            asked += 1
            answer = answerer.answer(image, question)[0][0]
            if answer == truth:
                found.append(localise(answerer.explain(image, question, answer).map, phantom.lesion_mask))
    mass, chance = np.mean([f.mass for f in found]), np.mean([f.chance for f in found])
    print(f"{len(found)} of {asked} right; mass in the lesion {mass:.3f}, chance {chance:.3f}: {mass / chance:.1f} times")
    assert len(found) > 0.55 * asked, "it answers by looking (chance: 0.44)"
    assert mass >= 3 * chance
    assert np.mean([f.gain for f in found]) >= 3


def test_the_certificate_says_that_it_looks(slake: Path, tmp_path: Path) -> None:
    assert make_shards(["vqa", "slake", str(slake), "--output", str(tmp_path / "shards"), "--side", "64"]) == 0
    words = ["--checkpoint", FOLDER, "--shards", tmp_path / "shards", "--output", tmp_path / "evaluation"]
    assert evaluate([*map(str, words)]) == 0
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    found = results["image_dependence"]["overall"]
    assert found["right_image"]["accuracy"] == results["views"]["test"]["model"]["overall"]["accuracy"]
    assert found["shuffled"]["lost"] > 5, "a model that guesses by question loses nothing"
    assert all(found[name]["changed"] > 10 for name in ("shuffled", "blank", "noise"))
    assert "need the image" in results["image_dependence"]["sentence"]


def test_overlays_from_the_command_line(slake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = slake / "imgs" / "test0" / "source.jpg"
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS))
    words = ["--checkpoint", FOLDER, "--image", image, "--candidates", tmp_path / "answers.txt", "--output", tmp_path / "cam"]
    assert main([*map(str, words), "--question", "On which side is the lesion?", "--each-token"]) == 0
    report = json.loads((tmp_path / "cam" / "gradcam.json").read_text())
    assert report["explained"] == report["best"][0][0] in ("left", "right")
    assert report["explained"] in capsys.readouterr().out
    assert report["tokens"] == [report["explained"]]
    names = sorted(path.name for path in (tmp_path / "cam").glob("*.png"))
    assert names == ["answer.png", f"token-0-{report['explained']}.png"]
    original, made = (np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in (image, tmp_path / "cam" / "answer.png"))
    height, width = original.shape[:2]
    left = (made.shape[1] - width) // 2
    assert made.shape[0] > height, "the legend stands below the picture"
    assert abs(original - made[:height, left : left + width]).max() > 50
    assert main([*map(str, words), "--question", "where?", "--layer", "7"]) == 2
    assert "There is no multimodal layer 7" in capsys.readouterr().err


def test_boxes_in_slakes_layout_are_measured(slake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "localisation.json"
    assert main(["--checkpoint", str(FOLDER), "--slake", str(slake), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert {(line["layer"], line["answers"]) for line in found["summary"]} >= {("all", "right"), (0, "wrong"), (1, "right")}
    right = found["summary"][0]
    assert right["answers"] == "right" and right["mass"] > 2 * right["chance"] > 0
    assert right["questions"] + found["summary"][1]["questions"] == 3 * len(phantoms("test", TEST_IMAGES))
    assert "Grad-CAM inside SLAKE's boxes" in capsys.readouterr().out
