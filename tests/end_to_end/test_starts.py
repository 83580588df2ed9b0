"""From the checkpoints that people start with to answers: pretraining, finetuning, evaluation, conversion and back, at toy size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from m2i2.cli.convert import main as convert
from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.text.tokenizer import train_tokenizer
from tests.launching import succeed
from tests.unit.test_start_image import lively

SETTINGS = [
    *("--preset", "tiny", "training.precision=float32", "training.batch=8", "training.max_steps=2", "training.log_every=1"),
    *("data.workers=0", "validation.every=0"),
]
SMALL = [
    *("vision.depth=2", "vision.decoder_width=16", "vision.decoder_depth=1", "vision.decoder_heads=2"),
    *("text.depth=3", "text.fusion_layer=1", "text.decoder_depth=2", "text.intermediate=64"),
    *("objectives.queue=16", "objectives.projection=16"),
]


def write_bert(folder: Path, width: int, heads: int, kind: str = "BertForMaskedLM", lower: bool = True) -> list[str]:
    """A BERT of three layers with its vocabulary, as transformers writes it; returns the settings for it."""
    import transformers

    words = "a chest radiograph of the left right upper lower lung with nodule mass effusion no yes is there what on which side"
    train_tokenizer([words], 200).save(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    size = len((folder / "vocab.txt").read_text().splitlines())
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=width, num_hidden_layers=3, num_attention_heads=heads, intermediate_size=64
    )
    lively(getattr(transformers, kind)(config)).save_pretrained(folder)
    return [f"text.width={width}", f"text.heads={heads}", "text.positions=64"]


def write_image(folder: Path, name: str, width: int, heads: int, patch: int, side: int) -> list[str]:
    """A vision transformer of two layers as transformers writes it; returns the settings for it."""
    import transformers

    config = getattr(transformers, f"{name}Config")
    model = getattr(transformers, {"ViTMAE": "ViTMAEForPreTraining", "CLIPVision": "CLIPVisionModel"}.get(name, f"{name}Model"))
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    decoder = {
        **{"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
        "decoder_intermediate_size": 64,
    }
    more = decoder if name == "ViTMAE" else {}
    lively(model(config(**sizes, **more, patch_size=patch, image_size=side))).save_pretrained(folder)
    return [f"vision.width={width}", f"vision.heads={heads}", f"vision.patch_size={patch}"]


def large_and_base(folder: Path) -> list[str]:
    """ViT-L/16 of MAE and BERT-base."""
    image = write_image(folder / "image", "ViTMAE", 48, 4, 16, 48)
    return [*image, *write_bert(folder / "text", 32, 4), "vision.image_size=48"]


def small_14_and_base(folder: Path) -> list[str]:
    """ViT-S/14 and BERT-base."""
    image = write_image(folder / "image", "ViT", 24, 3, 14, 28)
    return [*image, *write_bert(folder / "text", 32, 4, "BertForPreTraining"), "vision.image_size=28"]


def dinov2_and_minilm(folder: Path) -> list[str]:
    """DINOv2-S at another resolution and MiniLM, whose heads are narrower."""
    image = write_image(folder / "image", "Dinov2", 32, 2, 14, 42)
    return [*image, *write_bert(folder / "text", 32, 4, "BertModel"), "vision.image_size=28"]


def clip_and_biobert(folder: Path) -> list[str]:
    """CLIP-B/16 and BioBERT, which is cased."""
    image = write_image(folder / "image", "CLIPVision", 32, 2, 16, 32)
    clip = ["vision.pre_norm=true", "vision.activation=quick_gelu", "vision.layer_norm_eps=1e-5"]
    return [*image, *write_bert(folder / "text", 32, 4, lower=False), *clip, "vision.image_size=32"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for kind in ("captions", "vqa"):
        words = [kind, "phantoms", "--output", str(folder / kind), "--count", "24", "--side", "48", "--workers", "1"]
        assert make_shards(words) == 0
    return folder


def answers(folder: Path, model: Path, shards: Path, *more: str) -> list[Any]:
    """What a model answers to the test questions, with its probabilities."""
    words = ["--checkpoint", model, "--shards", shards / "vqa", "--output", folder, "--precision", "float32", *more]
    assert evaluate([str(word) for word in words]) == 0
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def converted(source: Path, to: str, output: Path, *more: str) -> Path:
    assert convert([str(source), "--to", to, "--output", str(output), *more]) == 0
    return output


def model_of(run: Path) -> dict[str, Tensor]:
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("write", [large_and_base, small_14_and_base, dinov2_and_minilm, clip_and_biobert])
def test_a_start_goes_all_the_way_and_back(
    write: Callable[[Path], list[str]], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, *SMALL, *write(tmp_path)]
    start = ["start.image=image", "start.text=text"]
    out = succeed("pretrain", ["--shards", shards / "captions", "--output", "pretrained", *settings, *start], tmp_path)
    assert "image from image:" in out and "text from text:" in out and "Done: 2 steps" in out
    finetuning = [word for word in settings if not word.startswith(("objectives.", "validation."))]
    words = ["--checkpoint", "pretrained", "--shards", shards / "vqa", "--output", "answering", *finetuning]
    out = succeed("finetune", words, tmp_path)
    widths = [
        int(next(word for word in settings if word.startswith(f"{part}.width=")).partition("=")[2]) for part in ("vision", "text")
    ]
    assert ("which is not as wide as the image" in out) == (widths[0] != widths[1])
    run = tmp_path / "answering"
    found = answers(tmp_path / "one", run, shards)
    official = converted(run, "official", tmp_path / "answering.pth")
    said = capsys.readouterr().out
    assert ("encoder_width=32" in said) == (widths[0] != widths[1])
    assert ("no vision.pre_norm=true vision.activation=quick_gelu" in said) == (write is clip_and_biobert)
    tokenizer = ["--tokenizer", str(tmp_path / "text")]
    hub = converted(official, "hugging-face", tmp_path / "hub", *tokenizer)
    back = converted(hub, "checkpoint", tmp_path / "back")
    assert answers(tmp_path / "official", official, shards, *tokenizer) == found
    tensors, again = model_of(run), load_file(back / "model.safetensors")
    assert tensors.keys() == again.keys() and all(tensors[name].equal(again[name]) for name in tensors)
    pretrained = converted(tmp_path / "pretrained", "official", tmp_path / "pretrained.pth")
    ours = converted(pretrained, "checkpoint", tmp_path / "pretrained-again", *tokenizer)
    tensors, again = model_of(tmp_path / "pretrained"), load_file(ours / "model.safetensors")
    assert tensors.keys() == again.keys() and all(tensors[name].equal(again[name]) for name in tensors)
