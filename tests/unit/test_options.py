"""Settings from words and JSON: typed, checked, and fatal where unknown."""

import json
from pathlib import Path

import pytest

from m2i2.config import PRESETS, FinetuningConfig, PretrainingConfig, preset
from m2i2.errors import M2I2Error
from m2i2.options import differences, explain, from_dict, leaves, override, read_settings, to_dict


def test_overrides_are_typed_and_leave_the_rest() -> None:
    settings = override(
        preset("paper")[0],
        [
            "training.epochs=3",
            "optimizer.lr=2e-4",
            "data.flip=true",
            "data.crop_scale=0.5,1",
            "data.shards=a,b",
            "objectives.mim=0",
        ],
    )
    assert settings.training.epochs == 3
    assert settings.optimizer.lr == 2e-4
    assert settings.data.flip is True
    assert settings.data.crop_scale == (0.5, 1.0)
    assert settings.data.shards == ("a", "b")
    assert sorted(differences(settings, preset("paper")[0])) == sorted(
        ["training.epochs", "optimizer.lr", "data.flip", "data.crop_scale", "data.shards", "objectives.mim"]
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.epoch=3", "did you mean training.epochs"),
        ("epochs=3", "Unknown setting 'epochs'"),
        ("training.epochs", "write section.key=value"),
        ("training.epochs=three", "not a whole number"),
        ("training.epochs=2.5", "not a whole number"),
        ("training.epochs=true", "not a whole number"),
        ("data.flip=yes", "not true or false"),
        ("training.precision=float16", "not one of auto, bfloat16, float32"),
        ("data.crop_scale=0.5", "not float,float"),
        ("data.crop_scale=0.9,0.2", "0 < low <= high"),
        ("training.batch=0", "at least 1"),
        ("vision.image_size=250", "multiple of vision.patch_size"),
        ("training.accumulation=5", "does not divide"),
        ("preset=small", "Unknown setting 'preset'"),
    ],
)
def test_wrong_settings_say_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        override(preset("paper")[0], [assignment])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_way_through_json(name: str, tmp_path: Path) -> None:
    for settings in preset(name):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(to_dict(settings)))
        assert read_settings(type(settings), path) == settings


def test_unknown_presets_and_keys_in_files_are_fatal(tmp_path: Path) -> None:
    with pytest.raises(M2I2Error, match="the presets are paper, official, large, small, tiny"):
        preset("huge")
    with pytest.raises(M2I2Error, match=r"text\.widht"):
        from_dict(PretrainingConfig, {"text": {"widht": 3}})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(M2I2Error, match="not valid JSON"):
        read_settings(PretrainingConfig, tmp_path / "broken.json")
    with pytest.raises(M2I2Error, match="Cannot read"):
        read_settings(PretrainingConfig, tmp_path / "absent.json")


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
def test_the_help_lists_every_setting(kind: type) -> None:
    text = explain(kind())
    for key, _, _ in leaves(kind):
        assert f"  {key}=" in text
    assert "Share of the area" in text or "Share of the image's area" in text


def test_presets_hold_the_values_of_the_paper_and_of_the_official_code() -> None:
    pretraining, finetuning = preset("paper")
    assert (pretraining.training.epochs, pretraining.training.batch, pretraining.vision.image_size) == (40, 32, 256)
    assert (pretraining.optimizer.lr, pretraining.optimizer.final_lr, pretraining.optimizer.weight_decay) == (
        1e-4,
        1e-5,
        0.002,
    )
    assert (pretraining.objectives.queue, pretraining.objectives.momentum, pretraining.objectives.distillation) == (
        65536,
        0.995,
        0.4,
    )
    assert (finetuning.training.epochs, finetuning.training.batch, finetuning.vision.image_size) == (40, 8, 384)
    assert (finetuning.optimizer.lr, finetuning.optimizer.final_lr) == (2e-5, 1e-6)
    assert not pretraining.data.flip
    pretraining, finetuning = preset("official")
    assert (pretraining.training.epochs, pretraining.training.batch, pretraining.data.flip) == (30, 16, True)
    assert pretraining.optimizer.weight_decay == finetuning.optimizer.weight_decay == 0.02
    assert (pretraining.objectives.negatives, pretraining.objectives.false_negatives) == ("local", "official")
