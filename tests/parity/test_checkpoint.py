"""An official .pth loads with weights only, every key accounted for, and answers like the state it was made from."""

from dataclasses import replace
from pathlib import Path

import torch

from m2i2.config import StartConfig
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start import official_architecture, start_answering, start_pretraining
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import of_student, read_state
from tests.parity.fixture import largest_difference, sizes, tensors


def test_the_official_file_gives_the_official_state(parity_folder: Path) -> None:
    path, official = parity_folder / "pretrain_checkpoint.pth", sizes(parity_folder)
    model = PretrainingModel(official.vision, official.text, official.objectives)
    (line,) = start_pretraining(model, StartConfig(checkpoint=str(path)))
    assert line.endswith(f"{len(model.state_dict())} tensors loaded")
    state = of_student(tensors(parity_folder, "pretrain_state_dict"))
    assert sorted(state) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].float().reshape(tensor.shape)), name


def test_the_architecture_is_read_off_the_file(parity_folder: Path) -> None:
    vision, text = official_architecture(read_state(parity_folder / "pretrain_checkpoint.pth"))
    assert replace(vision, heads=4, decoder_width=32, decoder_depth=2, decoder_heads=4) == sizes(parity_folder).vision
    assert replace(text, heads=4, dropout=0.0, attention_dropout=0.0) == sizes(parity_folder).text


def test_finetuning_starts_from_the_official_file(parity_folder: Path) -> None:
    model_sizes = sizes(parity_folder)
    model = VQAModel(replace(model_sizes.vision, image_size=96), model_sizes.text)
    start_answering(model, StartConfig(checkpoint=str(parity_folder / "pretrain_checkpoint.pth")), multimodal_decoder=True)
    official = tensors(parity_folder, "vqa_state_dict")
    for name, tensor in model.state_dict().items():
        assert largest_difference(tensor.double(), official[name]) < 2e-6, name  # positions are interpolated in float32


def test_an_official_vqa_state_loads_as_it_is(parity_folder: Path, tmp_path: Path) -> None:
    official = tensors(parity_folder, "vqa_state_dict")
    torch.save({"model": official}, tmp_path / "vqa.pth")
    model_sizes = sizes(parity_folder)
    model = VQAModel(replace(model_sizes.vision, image_size=96), model_sizes.text).double()
    start_answering(model, StartConfig(checkpoint=str(tmp_path / "vqa.pth")), multimodal_decoder=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, official[name]), name
