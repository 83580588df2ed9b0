"""``python -m tests.parity FOLDER`` at other sizes: 0 where all agrees, 1 where one number differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main
from tests.parity.recording import record

SIZES: dict[str, Any] = {
    **{"image_size": 48, "patch_size": 8, "image_width": 16, "image_depth": 2, "image_heads": 2},
    **{"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "vocabulary": 120, "text_width": 24, "text_depth": 3},
    **{"fusion_layer": 1, "text_heads": 4, "intermediate": 24, "positions": 20, "answer_depth": 2, "projection": 4},
    **{"queue": 12, "momentum": 0.9, "alpha": 0.3, "mask_ratio": 0.3},
}
WIDER_IMAGE = {
    **{"image_size": 42, "patch_size": 14, "image_width": 32, "image_depth": 3, "image_heads": 4, "decoder_width": 12},
    **{"decoder_heads": 3, "text_width": 12, "text_depth": 4, "fusion_layer": 3, "text_heads": 2, "answer_depth": 3},
}
AS_WIDE = {"image_width": 24, "text_width": 24, "text_depth": 4, "fusion_layer": 2, "answer_depth": 1}
TOLD_BY_THE_WEIGHTS = {
    *("image_size", "patch_size", "image_width", "image_depth", "decoder_width", "decoder_depth", "vocabulary", "text_width"),
    *("text_depth", "fusion_layer", "intermediate", "positions", "answer_depth", "projection", "queue"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    record(folder, SIZES, batch=3, tokens=9, answering_side=64, k=2)
    return folder


def test_a_model_whose_text_is_wider(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "VQA gradients, distilled" in out and "below 1e-09" in out


@pytest.mark.parametrize("sizes", [WIDER_IMAGE, AS_WIDE], ids=["image wider", "as wide"])
def test_models_of_other_sizes(sizes: dict[str, int], tmp_path: Path) -> None:
    record(tmp_path, {**SIZES, **sizes}, batch=3, tokens=9, answering_side=84 if sizes is WIDER_IMAGE else 64, k=2)
    assert main([str(tmp_path)]) == 0


def test_a_folder_that_tells_little_and_has_no_answering_part(folder: Path, tmp_path: Path) -> None:
    for name in ("state_dict", "inputs", "outputs"):
        shutil.copy(folder / f"pretrain_{name}.safetensors", tmp_path)
    told = {key: value for key, value in SIZES.items() if key not in TOLD_BY_THE_WEIGHTS}
    (tmp_path / "model.json").write_text(json.dumps(told))
    assert main([str(tmp_path)]) == 0


def test_heads_that_are_not_told_are_asked_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "other")
    told = {key: value for key, value in SIZES.items() if key != "text_heads"}
    (tmp_path / "other" / "model.json").write_text(json.dumps(told))
    assert main([str(tmp_path / "other")]) == 1
    assert "model.json has no text_heads" in capsys.readouterr().err


CHANGES = [
    *[("pretrain", name) for name in ("loss_itc", "queue_ptr_after", "text_queue_after", "grad.temp", "itm_logits")],
    *[("vqa", name) for name in ("loss_distill", "rank_topk_ids", "fused_states")],
]


@pytest.mark.parametrize(("part", "name"), CHANGES)
def test_one_other_number_is_found(folder: Path, tmp_path: Path, part: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / f"{part}_outputs.safetensors"
    outputs = load_file(path)
    changed = outputs[name].flatten()
    changed[0] = changed[0] + (1 if "ptr" in name or "ids" in name else 1e-8)
    save_file({**outputs, name: changed.reshape(outputs[name].shape)}, path)
    assert main([str(tmp_path / "other")]) == 1
    assert name in capsys.readouterr().out


def test_a_gradient_that_is_not_recorded_is_found(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "pretrain_outputs.safetensors"
    outputs = load_file(path)
    del outputs["grad.itm_head.weight"]
    save_file(outputs, path)
    assert main([str(tmp_path / "other")]) == 1


def test_what_is_no_folder_of_numbers_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has no model.json" in capsys.readouterr().err
