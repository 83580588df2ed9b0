"""The demo model that ships with the package: what it is, what it knows, and that everything documented runs with it."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from m2i2.data.sources.phantoms import PhantomQuestions, draw_phantom
from m2i2.demo import ANSWERS, FOLDER, NOTICE, demo_image, demo_model
from m2i2.demo.build import IMAGES, QUESTIONS, SETTINGS, build
from m2i2.files import sha256_of
from m2i2.inference.answering import open_image
from m2i2.workflows.answering import load_model, read_candidates
from tests.conftest import ROOT
from tests.preloaded import LONG

RECORD = json.loads((FOLDER / "build.json").read_text())
TESTED = 40
"""Images of the test split that are asked about here."""


def test_the_files_are_those_of_the_record() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*RECORD["sha256"], "build.json"}
    for name, digest in RECORD["sha256"].items():
        assert sha256_of(FOLDER / name) == digest, f"{name} is not the file that {RECORD['command']} wrote"
    assert (FOLDER / "model.safetensors").stat().st_size <= 3_000_000
    assert (RECORD["settings"], RECORD["images"]) == (list(SETTINGS), IMAGES), "build it again: its settings have changed"
    assert NOTICE in (FOLDER / "README.md").read_text()
    assert not re.search(r"/tmp/|/home/|/work/", "".join(path.read_text() for path in FOLDER.glob("*.[jmt]*[dnt]")))


def test_it_answers_synthetic_questions_far_above_the_most_frequent_answer() -> None:
    """Also where it writes its answers: what the most frequent training answer of the same question gets right is 40 %."""
    answerer = load_model(FOLDER).answerer(read_candidates(ANSWERS))
    known: dict[str, Counter[str]] = defaultdict(Counter)
    right, guessed, asked = 0, 0, 0
    for record in PhantomQuestions(200):
        for row in (row for row in record.questions if row.question in QUESTIONS):
            if record.split == "train":
                known[row.question][row.answer] += 1
            elif record.split == "test" and int(record.key[-6:]) < TESTED:
                assert isinstance(record.image, bytes)
                asked += 1
                right += answerer.answer(open_image(record.image), row.question)[0][0] == row.answer
                guessed += known[row.question].most_common(1)[0][0] == row.answer
    print(f"{right} of {asked} right; the most frequent answer {guessed}")
    assert asked > 3 * TESTED
    assert right > guessed + 0.25 * asked


def test_a_first_answer_in_three_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = demo_model()
    assert NOTICE in capsys.readouterr().err
    truth = draw_phantom(0, "test", 0).findings
    (answer, probability), *others = model.answer(demo_image(), "what kind of lesion is shown?")
    assert answer == truth.lesion and probability > max(p for _, p in others)
    assert model.answer(demo_image(), "what is the imaging modality?")[0][0] == truth.modality


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import m2i2, sys; print([name for name in ('torch', 'numpy', 'PIL', 'transformers', 'm2i2.demo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", ["README.md", "docs/hugging-face.md"])
def test_documented_python_runs_offline_with_it(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one program for each page; the model and the images that it names are the demo model and synthetic images.

    The other pages bring their own data: see tests/unit/test_documentation.py.
    """
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    os.symlink(FOLDER, tmp_path / "hub" / "m2i2-rad")
    for number, name in enumerate(("chest.png", "abdomen.png")):
        demo_image(number).save(tmp_path / name)
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": page})


@pytest.mark.skipif(not LONG, reason="trains for minutes: M2I2_LONG=1")
def test_the_command_gives_such_a_model_again(tmp_path: Path) -> None:
    """Not the same bits: those differ with the processor and with torch."""
    assert build(tmp_path / "model") == 0
    again = json.loads((tmp_path / "model" / "build.json").read_text())
    assert again["settings"] == RECORD["settings"] and set(again["sha256"]) == set(RECORD["sha256"])
    assert abs(again["accuracy"]["model"] - RECORD["accuracy"]["model"]) < 6
