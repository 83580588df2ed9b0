"""Settings from words and JSON: typed, checked, and fatal where unknown."""

import ast
import itertools
import json
from pathlib import Path

import pytest

from m2i2.cli.pretrain import parse as parse_pretraining
from m2i2.cluster.options import ClusterOptions
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.objectives.registry import BUILT_IN
from m2i2.options import differences, explain, from_dict, leaves, override, read_settings, to_dict
from m2i2.presets import PRESETS, for_ranks, preset
from tests.conftest import ROOT


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
        ("training.precision=float8", "not one of auto, bfloat16, float16, float32"),
        ("data.crop_scale=0.5", "not float,float"),
        ("data.crop_scale=0.9,0.2", "0 < low <= high"),
        ("training.batch=0", "at least 1"),
        ("vision.image_size=250", "multiple of vision.patch_size"),
        ("training.accumulation=5", "does not divide"),
        ("preset=small", "Unknown setting 'preset'"),
        ("training.learning_rate=1e-4", r"'training.learning_rate'; did you mean optimizer.lr\?"),
        ("training.lr=1e-4", r"did you mean optimizer.lr\?"),
        ("epochs=5", r"did you mean training.epochs\?"),
        ("batch_size=64", r"did you mean training.batch\?"),
        ("training.gradient-accumulation-steps=2", r"did you mean training.accumulation\?"),
        ("training.max_grad_norm=1", r"did you mean optimizer.clip\?"),
        ("optimizer.workers=4", r"did you mean data.workers\?"),
        ("split=test", r"did you mean data.split or validation.split\?"),
        ("colour=blue", "the keys here are preset, vision.image_size, "),
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
    with pytest.raises(M2I2Error, match=r"'text\.widht'; did you mean text\.width"):
        from_dict(PretrainingConfig, {"text": {"widht": 3}})
    with pytest.raises(M2I2Error, match=r"'training\.lr'; did you mean optimizer\.lr\?"):
        from_dict(FinetuningConfig, {"training": {"lr": 1e-4}})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(M2I2Error, match="not valid JSON"):
        read_settings(PretrainingConfig, tmp_path / "broken.json")
    with pytest.raises(M2I2Error, match="Cannot read"):
        read_settings(PretrainingConfig, tmp_path / "absent.json")


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig, ClusterOptions])
def test_every_setting_has_a_meaning(kind: type) -> None:
    assert not [key for key, _, meaning in leaves(kind) if len(meaning) < 10 or not meaning.endswith((".", ")"))]


@pytest.mark.parametrize("columns", [60, 140])
@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
def test_the_help_lists_every_setting_as_wide_as_the_terminal(kind: type, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = explain(kind())
    lines = text.splitlines()
    assert columns - 20 < max(map(len, (line for line in lines if line.startswith("      ")))) < columns
    for key, _, meaning in leaves(kind):
        place = next(number for number, line in enumerate(lines) if line.startswith(f"  {key}="))
        rest = itertools.takewhile(lambda line: line.startswith("      "), lines[place + 1 :])
        assert " ".join(map(str.strip, rest)) == meaning
    assert "  training.precision=auto [auto|bfloat16|float16|float32]" in text


@pytest.mark.parametrize("kind", [PretrainingConfig, FinetuningConfig])
def test_every_setting_is_read_from_the_settings_somewhere(kind: type) -> None:
    """A module's attribute of the same name (``self.name``) is none of the settings: one of them was set by nobody for months."""
    read = set(BUILT_IN)  # weights are read by the objectives' names
    for path in (ROOT / "m2i2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "config.py" else ():
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                read.add(node.attr)
    assert [key for key, _, _ in leaves(kind) if key.split(".")[-1] not in read] == []


def test_an_option_that_is_a_setting_is_recognised() -> None:
    with pytest.raises(M2I2Error, match=r"'--batch-size'; settings stand without dashes: did you mean training.batch=...\? --help"):
        parse_pretraining(["--batch-size", "64"])
    with pytest.raises(M2I2Error, match=r"'--lr=1e-4'; .*did you mean optimizer.lr="):
        parse_pretraining(["--lr=1e-4"])
    with pytest.raises(M2I2Error, match="'--colour'; --help lists"):
        parse_pretraining(["--colour", "blue"])


@pytest.mark.parametrize(
    ("batch", "accumulation", "ranks", "expected"),
    [(32, 1, 8, 32), (32, 1, 3, 33), (32, 2, 3, 36), (32, 1, 64, 64), (30, 1, 4, 30)],
)
def test_a_presets_batch_is_made_to_divide_by_the_ranks_and_a_chosen_one_is_not(
    batch: int, accumulation: int, ranks: int, expected: int
) -> None:
    settings = override(preset("paper")[0], [f"training.batch={batch}", f"training.accumulation={accumulation}"])
    fitting = for_ranks(settings, ranks)
    assert fitting.training.batch == expected
    assert differences(fitting, settings) == ([] if batch == expected else ["training.batch"])
    assert for_ranks(preset("paper")[1], 16).training.batch == 16


def test_one_sample_per_rank_is_said() -> None:
    (remark,) = Share(8, 1, 3, 8).remarks
    assert "A batch of 8 on 8 ranks is one sample per rank" in remark and "training.batch=64" in remark
    assert not Share(8, 8, 0, 1).remarks
    assert not Share(16, 1, 0, 8).remarks


@pytest.mark.parametrize(("accumulation", "scope"), [(1, "batch"), (2, "micro_batch")])
def test_settings_stored_by_earlier_versions_keep_their_kind_of_accumulation(accumulation: int, scope: str, tmp_path: Path) -> None:
    settings = override(preset("tiny")[0], [f"training.accumulation={accumulation}"])
    stored = to_dict(settings)
    del stored["objectives"]["scope"]
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    assert read_settings(PretrainingConfig, tmp_path / "settings.json").objectives.scope == scope
    assert settings.objectives.scope == "batch"


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
