"""Mistakes that everybody makes once, each tried as it happens: one paragraph says what was given, and what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from m2i2 import M2I2ForPretraining, M2I2ForVisualQuestionAnswering
from m2i2.errors import M2I2Error
from m2i2.hub.conversion import read, write
from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import run

SCRIPTS = sorted([*(ROOT / "launchers").glob("*.py"), *(ROOT / "tools").glob("*.py")])
GOLDEN = ROOT / "tests" / "golden" / "artefacts"
RENAMED = {
    **{"captions": "caption_shards", "vqa": "question_shards"},
    **{"pre": "pretraining_run", "fine": "finetuning_run", "hub-fine": "hugging_face"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, runs of both stages, models of both kinds, raw data and its archive."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, stored in RENAMED.items():
        shutil.copytree(GOLDEN / stored, folder / name)
    shutil.copytree(GOLDEN / "evaluation", folder / "fine" / "evaluation-test-rank")
    write(read(folder / "pre"), folder / "hub-pre", "hugging-face")
    (folder / "raw" / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("L", (32, 32)).save(folder / "raw" / "images" / f"{name}.png")
    rows = "image,caption\na.png,one word\nb.png,two words\nc.png,three words\n"
    (folder / "raw" / "pairs.csv").write_text(rows)
    shutil.make_archive(str(folder / "raw"), "zip", folder / "raw")
    (folder / "both").mkdir()
    for name in ("captions", "vqa"):
        os.symlink(folder / name, folder / "both" / name)
    (folder / "answers.txt").write_text("yes\nno\n")
    return folder


MISTAKES = {
    "pretrain --preset tiny --shards raw": (
        "raw has no index.json: it holds no shards, but images, pairs.csv. Make shards of raw data first: python "
        "tools/make_shards.py captions (or vqa) SOURCE raw --output shards/raw"
    ),
    "pretrain --preset tiny --shards raw.zip": "raw.zip has no index.json: it is a file, not a folder of shards. Unpack it first.",
    "pretrain --preset tiny --shards nowhere": "nowhere has no index.json: there is no such folder",
    "pretrain --preset tiny --shards pre": "pre has no index.json: it is the folder of a run, not of shards",
    "pretrain --preset tiny --shards both": "the shards are one folder below. Name one: both/captions, both/vqa",
    "pretrain --preset tiny --shards captions --output fine": (
        "is a checkpoint of finetuning, not of pretraining. fine belongs to that run: choose another --output"
    ),
    "finetune --preset tiny --shards vqa --checkpoint hub-fine": (
        "hub-fine holds no complete checkpoint; it is a Hugging Face folder. Convert it first: python tools/convert.py "
        "hub-fine --to checkpoint --output"
    ),
    "finetune --preset tiny --shards vqa --checkpoint vqa": "vqa holds no complete checkpoint; it holds shards",
    "evaluate --shards vqa --checkpoint pre": (
        "is a checkpoint of pretraining, not of finetuning. It answers no questions yet. Finetune it first: python "
        "launchers/finetune.py --checkpoint pre --shards QUESTIONS"
    ),
    "evaluate --shards vqa --checkpoint fine/evaluation-test-rank": (
        "it holds an evaluation. Name the run that was evaluated, such as fine."
    ),
    "app --checkpoint pre": "Finetune it first: python launchers/finetune.py --checkpoint pre",
    "app --checkpoint hub-pre": (
        "hub-pre is a pretrained model, not a finetuned one. Convert it first: python tools/convert.py hub-pre --to "
        "checkpoint --output"
    ),
    "gradcam --checkpoint pre --image raw/images/a.png --question why?": "Finetune it first: python launchers/finetune.py",
    "make_shards captions json raw/pairs.csv --output out1": (
        "Of 3 records of json none became a sample (3 x image file missing); see out1/rejects.jsonl. An image was looked for "
        "at raw/a.png: is that its place? --image-root names the folder where paths start."
    ),
    "make_shards captions json raw/pairs.csv --image-root raw/imgs --output out2": "--image-root raw/imgs is not a folder",
    "make_shards vqa vqa-rad --output out3": "The source vqa-rad needs the path of its data, and none was given",
    "make_shards vqa vqa-rad nowhere --output out4": "The source vqa-rad needs the path of its data; nowhere is not there",
    "compare fine fine": "fine has no results.json. The evaluations are one folder below: name fine/evaluation-test-rank",
    "compare fine/evaluation-test-rank/results.json fine": "results.json is a file; name the folder that holds",
    "slurm pretrain --gpus 0 --preset tiny --output out5": (
        "slurm.py has no option '--preset' of the cluster. Options of the launcher stand behind \"--\": python "
        "launchers/slurm.py pretrain --gpus 0 -- --preset tiny --output out5"
    ),
    "slurm pipeline --questions vqa --output out6 --preset tiny": "stand in quotes: --pretrain, --finetune, --evaluate",
}
"""What is typed behind python tools/ or launchers/, and what has to be in the answer."""


@pytest.mark.parametrize(("command", "message"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_answered_with_what_to_do(folder: Path, command: str, message: str) -> None:
    name, *words = command.split()
    script = next(path for path in SCRIPTS if path.stem == name)
    done = run([sys.executable, str(script), *words], folder, environment(), 600)
    assert done.returncode == 2, done.stderr[-2000:]
    said = done.stderr.strip().splitlines()
    assert message in said[-1], said[-1]
    assert said[-1].startswith("error") and "Traceback" not in done.stderr
    assert not any(name in said[-1] for name in ("PretrainingConfig", "FinetuningConfig", "ShardSplit", "PosixPath"))


def test_from_pretrained_says_what_comes_first(folder: Path) -> None:
    for source, wanted, message in (
        ("fine", M2I2ForVisualQuestionAnswering, r"Convert it first: python tools/convert\.py \S*fine --to hugging-face"),
        ("hub-pre", M2I2ForVisualQuestionAnswering, r"is a pretrained model, .* finetune first: python tools/convert\.py"),
        ("hub-fine", M2I2ForPretraining, "is a model that answers questions, .* load it with M2I2ForVisualQuestionAnswering"),
    ):
        with pytest.raises(M2I2Error, match=message):
            wanted.from_pretrained(folder / source)


def bare(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A script in a Python that has nothing installed: what somebody has who did not activate the environment."""
    return subprocess.run([sys.executable, "-I", "-S", str(script), *words], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_the_environment_every_script_says_how_to_activate_it(script: Path) -> None:
    if script.name == "doctor.py":
        pytest.skip("it examines such a Python: see below")
    done = bare(script, "--help")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr and "make setup" in done.stderr


def test_the_doctor_examines_a_checkout_that_is_not_installed() -> None:
    done = bare(ROOT / "tools" / "doctor.py")
    assert done.returncode == 2, done.stderr
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert any("packages" in line for line in faults) and any("No module named 'torch'" in line for line in faults)
    assert done.stdout.count("-> make setup, then source .venv/bin/activate") >= len(faults)
    assert "Traceback" not in done.stderr


def test_a_launcher_needs_no_path(folder: Path) -> None:
    """As under cron and in containers: where PATH is not set."""
    kept = {name: value for name, value in environment().items() if name != "PATH"}
    words = [str(ROOT / "launchers" / "pretrain.py"), "--preset", "tiny", "--shards", "captions", "--output", "no-path"]
    small = ["training.max_steps=1", "training.batch=4", "validation.every=0", "data.workers=0"]
    done = run([sys.executable, *words, *small], folder, kept, 600)
    assert done.returncode == 0, done.stderr[-2000:]
