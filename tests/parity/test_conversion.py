"""tools/convert.py: official files, checkpoints and Hugging Face folders into one another, every bit kept."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from m2i2 import M2I2ForPretraining, M2I2ForVisualQuestionAnswering
from m2i2.cli.convert import main as convert
from m2i2.data.text.tokenizer import load_tokenizer, train_tokenizer
from m2i2.models.weights import of_student, read_state
from m2i2.tasks.queue import FeatureQueue
from m2i2.training.checkpoint import flaw
from tests.parity.fixture import tensors


@pytest.fixture(scope="module")
def files(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official pretraining file, an official VQA file, and a tokenizer of as many tokens."""
    folder = tmp_path_factory.mktemp("conversion")
    (folder / "pretraining.pth").symlink_to(parity_folder / "pretrain_checkpoint.pth")
    torch.save({"model": tensors(parity_folder, "vqa_state_dict"), "epoch": 3}, folder / "answering.pth")
    train_tokenizer([" ".join(f"word{i}" for i in range(2000))], 500).save(folder / "tokenizer")
    return folder


def run(files: Path, source: str, to: str, output: str) -> Path:
    words = [str(files / source), "--to", to, "--output", str(files / output)]
    if source.endswith(".pth"):
        words += ["--tokenizer", str(files / "tokenizer"), "--heads", "4,4"]
    assert convert(words) == 0
    return files / output


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape and tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("stage", ["pretraining", "answering"])
def test_every_way_round_keeps_every_bit_of_the_official_file(files: Path, stage: str) -> None:
    official = torch.load(files / f"{stage}.pth", weights_only=True)["model"]
    if stage == "pretraining":
        assert {"queue_ptr", "text_encoder_m.bert.embeddings.position_ids", "visual_encoder_m.mask_token"} < set(official)
        assert official["temp"].shape == ()
    ours = run(files, f"{stage}.pth", "checkpoint", f"{stage}-ours")
    assert flaw(ours) == ""
    hub = run(files, f"{stage}-ours", "hugging-face", f"{stage}-hub")
    run(files, f"{stage}-hub", "checkpoint", f"{stage}-ours-again")
    for name in ("ours", "hub", "ours-again"):
        back = run(files, f"{stage}-{name}", "official", f"{stage}-{name}.pth")
        assert_same(torch.load(back, weights_only=True)["model"], official)
    again = files / f"{stage}-ours-again"
    for name in ("model.safetensors", "config.json", "tokenizer/vocab.txt"):
        assert (ours / name).read_bytes() == (again / name).read_bytes(), name
    assert load_tokenizer(ours / "tokenizer").fingerprint == load_tokenizer(again / "tokenizer").fingerprint
    kind = M2I2ForPretraining if stage == "pretraining" else M2I2ForVisualQuestionAnswering
    state = of_student(read_state(files / f"{stage}.pth"))
    for name, tensor in kind.from_pretrained(hub).state_dict().items():
        assert torch.equal(tensor, state[name].reshape(tensor.shape)), name


def test_straight_from_official_to_hugging_face(files: Path) -> None:
    run(files, "pretraining.pth", "hugging-face", "straight")
    back = run(files, "straight", "official", "straight.pth")
    official = torch.load(files / "pretraining.pth", weights_only=True)["model"]
    assert_same(torch.load(back, weights_only=True)["model"], official)


def test_the_queue_goes_on_where_the_official_one_stopped(files: Path) -> None:
    folder = run(files, "pretraining.pth", "checkpoint", "queue")
    queue = FeatureQueue(24, 16)
    queue.load_state_dict(load_file(folder / "queue.safetensors"))
    official = torch.load(files / "pretraining.pth", weights_only=True)["model"]
    assert torch.equal(queue.image.T, official["image_queue"]) and torch.equal(queue.text.T, official["text_queue"])
    assert int(queue.pointer) == 20


def test_what_cannot_be_converted_is_one_paragraph(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, there = str(files / "pretraining.pth"), str(files / "tokenizer")
    assert convert([source, "--to", "checkpoint", "--output", str(files / "no"), "--heads", "4"]) == 2
    assert "An official file holds no tokenizer" in capsys.readouterr().err
    assert convert([source, "--to", "official", "--output", there, "--heads", "4"]) == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert([source, "--to", "checkpoint", "--output", str(files / "no"), "--heads", "4,0"])
    assert "write N, or N,M" in capsys.readouterr().err
    assert convert([there, "--to", "official", "--output", str(files / "no")]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err
    assert not (files / "no").exists()
