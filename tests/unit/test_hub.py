"""Hugging Face's conventions: what is saved comes back to the bit, under Auto classes too, and answers in three lines."""

import copy
import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    BertTokenizer,
    pipeline,
)

import m2i2
from m2i2 import M2I2Config, M2I2ForPretraining, M2I2ForVisualQuestionAnswering, M2I2Processor
from m2i2.data.images.transforms import EvaluationTransform, normalise
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.errors import M2I2Error
from m2i2.hub import VisualQuestionAnsweringPipeline
from m2i2.presets import finetuning_preset, pretraining_preset
from tests.conftest import ROOT
from tests.launching import environment

WORDS = ["is there a lesion on the left side or on the right", "yes no nodule cyst mass"]
KINDS = [M2I2ForPretraining, M2I2ForVisualQuestionAnswering]


def make(kind: Any, folder: Path) -> Any:
    tokenizer = train_tokenizer(WORDS, 200)
    tokenizer.save(folder / "tokenizer")
    settings: Any = (pretraining_preset if kind is M2I2ForPretraining else finetuning_preset)("tiny")
    text = replace(settings.text, vocabulary_size=tokenizer.size)
    torch.manual_seed(0)
    model = kind(M2I2Config.of(settings.vision, text, getattr(settings, "objectives", None)))
    model.processor = M2I2Processor(BertTokenizer.from_pretrained(folder / "tokenizer"), 64, max_tokens=64)
    return model.eval()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_comes_back_to_the_bit(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make(kind, tmp_path).to(dtype)
    model.save_pretrained(tmp_path / "saved")
    back = kind.from_pretrained(tmp_path / "saved")
    assert_same(model.state_dict(), back.state_dict())
    frozen = [name for name, p in back.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad] != []
    assert not back.training and not back.network.training
    assert back.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    back.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "saved" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_reads_the_same_parameters_whatever_happens_to_them(kind: Any, tmp_path: Path) -> None:
    model = make(kind, tmp_path)
    assert list(model.network.state_dict()) == list(model.state_dict())
    for changed in (copy.deepcopy(model), model.double(), model.train()):
        assert all(a is b for a, b in zip(changed.parameters(), changed.network.parameters(), strict=True))
        assert changed.training == changed.network.training


def test_auto_classes(tmp_path: Path) -> None:
    autos = (AutoModelForPreTraining, AutoModelForVisualQuestionAnswering)
    for kind, auto in zip(KINDS, autos, strict=True):
        make(kind, tmp_path).save_pretrained(tmp_path / kind.__name__)
        assert isinstance(auto.from_pretrained(tmp_path / kind.__name__), kind)
        assert isinstance(AutoModel.from_pretrained(tmp_path / kind.__name__), kind)
        assert isinstance(AutoProcessor.from_pretrained(tmp_path / kind.__name__), M2I2Processor)
        assert isinstance(AutoConfig.from_pretrained(tmp_path / kind.__name__), M2I2Config)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    make(M2I2ForVisualQuestionAnswering, tmp_path).save_pretrained(tmp_path / "saved")
    with pytest.raises(M2I2Error, match="answers questions, not a pretrained model; load it with M2I2ForVisualQuestionAnswering"):
        M2I2ForPretraining.from_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**stored, "architectures": None}))
    with pytest.raises(M2I2Error, match="does not hold the weights of M2I2ForPretraining: missing or unknown are itm_head"):
        M2I2ForPretraining.from_pretrained(tmp_path / "saved")


def test_the_processor_prepares_as_the_evaluation_does(tmp_path: Path) -> None:
    make(M2I2ForVisualQuestionAnswering, tmp_path).save_pretrained(tmp_path / "saved")
    processor = M2I2Processor.from_pretrained(tmp_path / "saved")
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    found = processor(images=[tmp_path / "image.png", image], text=["Is there a lesion?", "mass?, no"])
    pixels = np.asarray(image)
    for images in (pixels, [pixels], np.stack([pixels] * 2), torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]):
        assert torch.equal(processor(images=images)["pixel_values"][-1], found["pixel_values"][0])
    expected = normalise(EvaluationTransform(size=64)((tmp_path / "image.png").read_bytes(), "image")[None])
    assert torch.equal(found["pixel_values"], expected.expand(2, -1, -1, -1))
    tokenizer = train_tokenizer(WORDS, 200)
    assert found["input_ids"][0].tolist() == tokenizer.encode("is there a lesion", 64)
    assert found["input_ids"][1].tolist()[:4] == tokenizer.encode("mass no", 64)
    assert found["attention_mask"].sum(1).tolist() == [6, 4]


def test_the_processor_takes_the_arguments_of_others(tmp_path: Path) -> None:
    processor = make(M2I2ForVisualQuestionAnswering, tmp_path).processor
    texts = ["is there a lesion on the left side", "mass"]
    plain = processor(text=texts)
    padded = processor(text=texts, padding="max_length", max_length=12, truncation=True, return_tensors="np")
    assert isinstance(padded["input_ids"], np.ndarray) and padded["input_ids"].shape == (2, 12)
    width = plain["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        assert padded[name][:, :width].tolist() == plain[name].tolist() and not padded[name][:, width:].any()
        assert torch.equal(processor(text=texts, padding=True, return_tensors="pt")[name], plain[name])
    assert processor(text=texts, max_length=4)["input_ids"].shape == (2, 4)
    assert processor(text="mass", padding=False)["input_ids"].shape == (1, 3)
    for wrong, message in (
        ({"padding": False}, r"Texts of \[3, 10\] tokens make no tensor"),
        ({"padding": "left"}, "padding='left'"),
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(text=texts, **wrong)
    processor.max_tokens = 8
    with pytest.raises(ValueError, match="more than 8 tokens"):
        processor(text=texts, truncation=False)
    with pytest.raises(TypeError, match="no argument 'boxes'"):
        processor(text="mass", boxes=[])


def test_many_questions_are_answered_as_each_alone(tmp_path: Path) -> None:
    model = make(M2I2ForVisualQuestionAnswering, tmp_path)
    images = [Image.effect_noise((90, 70), 60).convert("RGB") for _ in range(3)]
    asked = ["is there a lesion", "mass or cyst on the left side", "nodule"]
    for candidates in (["yes", "no", "mass"], None):
        alone = [model.answer(image, question, candidates) for image, question in zip(images, asked, strict=True)]
        together = model.answer(images, asked, candidates, batch=2)
        pixels = np.stack([np.asarray(image) for image in images])
        for found in (together, model.answer(pixels, asked, candidates)):
            for one, other in zip(alone, found, strict=True):
                assert [a for a, _ in one] == [a for a, _ in other]
                assert [p for _, p in one] == pytest.approx([p for _, p in other], rel=1e-4)
    about_one = model.answer(images[0], asked, ["yes", "no"])
    assert [dict(row) for row in about_one] == [
        pytest.approx(dict(model.answer(images[0], question, ["yes", "no"])), rel=1e-4) for question in asked
    ]
    for image, question, message in (
        (images, asked[0], "One question and 3 images"),
        (images[:2], asked, "2 images and 3 questions"),
        (images[0], [asked[0], "?"], "question is empty"),
    ):
        with pytest.raises(M2I2Error, match=message):
            model.answer(image, question)


def test_the_pipeline_of_transformers_answers(tmp_path: Path) -> None:
    model = make(M2I2ForVisualQuestionAnswering, tmp_path)
    model.save_pretrained(tmp_path / "saved")
    ask: Any = pipeline("medical-visual-question-answering", model=str(tmp_path / "saved"), device="cpu")
    assert isinstance(ask, VisualQuestionAnsweringPipeline)
    images = [Image.effect_noise((90, 70), 60).convert("RGB") for _ in range(3)]
    names = ["yes", "no", "mass"]
    expected = [model.answer(image, "is there a lesion", names, top=2) for image in images]
    rows = [{"image": image, "question": "is there a lesion"} for image in images]
    many = [[ask(image, "is there a lesion", candidates=names, top_k=2) for image in images]]
    many.append(ask(image=images, question="is there a lesion", candidates=names, top_k=2, batch_size=2))
    many.append(ask(rows, candidates=names, top_k=2))
    many.append(list(ask((row for row in rows), candidates=names, top_k=2, batch_size=3)))
    for found in many:
        assert [[one["answer"] for one in row] for row in found] == [[a for a, _ in row] for row in expected]
        scores = [one["score"] for row in found for one in row]
        assert scores == pytest.approx([p for row in expected for _, p in row], rel=1e-4)
    written = ask(images[0], ["is there a lesion", "nodule"], batch_size=2)
    assert [len(row) > 0 for row in written] == [True, True]
    with pytest.raises(M2I2Error, match="question is empty"):
        ask(images[0], "?")
    with pytest.raises(TypeError, match="no argument 'topk'"):
        ask(images[0], "nodule", topk=1)
    ask.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.py"))
    assert_same(M2I2ForVisualQuestionAnswering.from_pretrained(tmp_path / "again").state_dict(), model.state_dict())


def test_the_loss_is_that_of_the_answers(tmp_path: Path) -> None:
    model = make(M2I2ForVisualQuestionAnswering, tmp_path)
    inputs = model.processor(images=[Image.new("RGB", (64, 64))] * 2, text=["is there a lesion"] * 2)
    labels = torch.tensor([[2, 9, 3, -100], [2, 9, 8, 3]])
    both = float(model(**inputs, labels=labels).loss.detach())
    first = {name: tensor[:1] for name, tensor in inputs.items()}
    one = [float(model(**first, labels=row[row >= 0][None]).loss.detach()) for row in labels]
    assert both == pytest.approx(sum(one) / 2, rel=1e-5)
    with torch.no_grad():
        out = make(M2I2ForPretraining, tmp_path)(**inputs)
    assert out.image_features.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert out.similarity.shape == out.matching_logits.shape == (2, 2)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel puts into an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("m2i2", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("m2i2-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_says_what_it_is(installed: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    about = found.metadata
    assert (about["Name"], about["Version"], about["Requires-Python"]) == ("m2i2", m2i2.__version__, ">=3.10")
    assert (about["License"] or about["License-Expression"]) == "MIT" and about["License-File"] == "LICENSE"
    assert about["Summary"] and about["Author"] and about["Keywords"] and about["Description-Content-Type"] == "text/markdown"
    assert "Project-URL" in about and "Topic :: Scientific/Engineering :: Artificial Intelligence" in about.get_all(
        "Classifier", []
    )
    extras = {"slurm", "remote", "parquet", "dicom", "app", "plots", "tensorboard", "wandb", "fuzz", "tests", "docs", "dev"}
    assert set(about.get_all("Provides-Extra", [])) == extras
    names = {str(file) for file in found.files or ()}
    assert "m2i2/py.typed" in names and "m2i2/demo/model/model.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.split("/")[0] not in ("m2i2", f"m2i2-{m2i2.__version__}.dist-info")]


def test_three_lines_answer_a_question_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    make(M2I2ForVisualQuestionAnswering, tmp_path).save_pretrained(tmp_path / "saved")
    Image.effect_noise((90, 70), 60).save(tmp_path / "image.png")
    lines = (
        "from m2i2 import M2I2ForVisualQuestionAnswering\n"
        "model = M2I2ForVisualQuestionAnswering.from_pretrained('saved')\n"
        "print(model.answer('image.png', 'Is there a lesion?', candidates=['yes', 'no']))\n"
    )
    code = f"{lines}print(model.answer('image.png', 'Is there a lesion?'))\nimport m2i2; print([m2i2.__file__])"
    place = {**environment(), "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranked, written, (file,) = map(json.loads, done.stdout.replace("(", "[").replace(")", "]").replace("'", '"').splitlines())
    assert {answer for answer, _ in ranked} == {"yes", "no"}
    assert ranked[0][1] >= ranked[1][1] and sum(p for _, p in ranked) == pytest.approx(1, abs=1e-5)
    assert 1 <= len(written) <= 5
    assert Path(file) == installed / "m2i2" / "__init__.py"
    for data in ("evaluation/literature.json", "reporting/report.html.j2", "app/page.css", "app/page.js", "app/view.html.j2"):
        assert (installed / "m2i2" / data).is_file(), f"the wheel lacks {data}"


def test_importing_the_package_alone_is_cheap() -> None:
    code = "import m2i2, sys; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_says_what_it_scored_and_what_it_is_not(tmp_path: Path) -> None:
    counts = {"accuracy": 50.0, "correct": 1, "total": 2}
    rows = dict.fromkeys(("closed", "open", "overall"), counts)
    results = {
        "views": {"freeform": dict.fromkeys(("model", "question_only", "most_frequent"), rows)},
        "protocol": {"name": "paper", "habits": ["The split leaks."]},
        "shards": {"source": "vqa-rad"},
    }
    model = make(M2I2ForVisualQuestionAnswering, tmp_path)
    model.save_pretrained(tmp_path / "saved", results=results)
    card = (tmp_path / "saved" / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.library_name, data.language, data.pipeline_tag) == ("m2i2", "en", "visual-question-answering")
    task = importlib.import_module(f"huggingface_hub.inference._generated.types.{str(data.pipeline_tag).replace('-', '_')}")
    assert task, "a task of the hub"
    assert [(r.metric_name, r.metric_value, r.dataset_args) for r in data.eval_results or []][-1] == (
        "accuracy, %",
        50.0,
        {"protocol": "paper"},
    )
    for words in ("not a medical device", "| this model | 50.0 | 50.0 | 50.0 |", "- The split leaks.", "64 x 64 pixels"):
        assert words in card
    (tmp_path / "saved" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == "mine"


def test_every_command_of_the_wheel_explains_itself(installed: Path) -> None:
    (listed,) = installed.glob("m2i2-*.dist-info/entry_points.txt")
    commands = [line.split(" = ")[1] for line in listed.read_text().splitlines() if line.endswith(":main")]
    names = {script.stem for folder in ("tools", "launchers") for script in (ROOT / folder).glob("*.py")}
    assert {command.split(".")[-1].removesuffix(":main") for command in commands} == names - {"ablate", "benchmark", "demo"}
    place = {**environment(), "PYTHONPATH": str(installed)}
    for command in commands:
        module = command.removesuffix(":main")
        code = f"import sys, {module} as m; sys.argv = ['x', '--help']; m.main()"
        done = subprocess.run([sys.executable, "-c", code], cwd=installed, env=place, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, f"{command}: {done.stderr}"
