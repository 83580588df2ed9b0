"""The linear probe: labels out of questions, what it reads off features, and the command."""

import json
from pathlib import Path

import pytest
import torch

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.records import Question
from m2i2.errors import M2I2Error
from m2i2.evaluation.probe import Labelled, label_of, probe
from tests.random_run import write_random_pretraining


def question(answer: str, closed: bool = False, **metadata: str) -> Question:
    return Question(id="1", question="?", answer=answer, closed=closed, metadata=metadata)


@pytest.mark.parametrize(
    ("target", "questions", "label"),
    [
        ("modality", [question("no", modality="X-Ray"), question("CT", question_type="modality")], "x-ray"),
        ("modality", [question("xr - plain film", question_type="modality")], "x-ray"),
        ("modality", [question("us-d - doppler ultrasound", question_type="modality")], "ultrasound"),
        ("modality", [question("mra - mr angiography/venography", question_type="modality")], "MRI"),
        ("modality", [question("t2", question_type="modality")], "MRI"),
        ("modality", [question("an - angiogram", question_type="modality")], "angiogram"),
        ("modality", [question("pet-ct fusion", question_type="modality")], "nuclear medicine"),
        ("modality", [question("noncontrast", question_type="modality")], None),
        ("modality", [question("yes", closed=True, question_type="modality")], None),
        (
            "plane",
            [question("Transverse  Plane", question_type="Plane"), question("No", True, question_type="Plane")],
            "transverse plane",
        ),
        ("plane", [question("axial", question_type="organ")], None),
        ("organ", [question("a"), question("b", organ="Lung"), question("c", organ="Lung"), question("d", organ="Brain")], "lung"),
        ("organ", [], None),
    ],
)
def test_the_label_of_an_image_is_what_its_questions_say(target: str, questions: list[Question], label: str | None) -> None:
    assert label_of(questions, target) == label


def test_a_probe_reads_what_is_in_the_features_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)

    def labelled(count: int, strength: float) -> Labelled:
        numbers = torch.arange(count) % 3
        features = torch.randn(count, 8, generator=generator) + strength * torch.eye(8)[numbers]
        names = ["axial", "coronal", "sagittal"]
        return Labelled(features, [names[n] for n in numbers.tolist()], [f"image {i}" for i in range(count)])

    train = labelled(300, 6.0)
    rare = Labelled(torch.cat([train.features, torch.zeros(3, 8)]), [*train.labels, *["oblique"] * 3], [*train.images, *"abc"])
    found = probe(rare, labelled(90, 6.0))
    assert found["accuracy"] > 97 and found["balanced_accuracy"] > 97 and found["interval"][0] > 90
    assert (found["classes"], found["train_images"], found["test_images"], found["left_out"]) == (3, 300, 90, 3)
    assert found["most_frequent"] == 33.33 and set(found["recall"]) == {"axial", "coronal", "sagittal"}
    assert probe(labelled(300, 0.0), labelled(90, 0.0))["accuracy"] < 50, "noise tells nothing"
    with pytest.raises(M2I2Error, match="two classes of at least 10 training images"):
        probe(labelled(12, 1.0), labelled(9, 1.0))


def test_the_command_probes_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, count in (("captions", "20"), ("vqa", "120")):
        words = [kind, "phantoms", "--output", str(tmp_path / kind), "--count", count, "--side", "32", "--workers", "1"]
        assert make_shards(words) == 0
    write_random_pretraining(tmp_path / "run", tmp_path / "captions")
    words = ["probe", "--checkpoint", str(tmp_path / "run"), "--before", "--shards", str(tmp_path / "vqa"), "--targets"]
    assert evaluate([*words, "modality"]) == 0
    results = json.loads((tmp_path / "run" / "probe-vqa.json").read_text())
    assert list(results["targets"]) == ["modality"]
    for rows in results["targets"].values():
        assert list(rows) == [str(tmp_path / "run"), "starting weights"]
        for row in rows.values():
            assert set(row) == {"cls", "mean"} and row["cls"]["test_images"] > 5
    assert "Linear probe of" in capsys.readouterr().out
    assert evaluate([*words, "plane"]) == 2
    assert "or other --targets" in capsys.readouterr().err
