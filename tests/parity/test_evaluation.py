"""An official VQA file (.pth) is evaluated as it is: at its own resolution, under either protocol."""

import json
from pathlib import Path

import pytest
import torch

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from tests.parity.fixture import tensors

SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
HEADS = ["vision.heads=4", "text.heads=4", "text.dropout=0", "text.attention_dropout=0"]


@pytest.fixture(scope="module")
def folder(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official model in the official layout, a vocabulary of its 500 tokens, and questions."""
    folder = tmp_path_factory.mktemp("official")
    state = {name: tensor.float() for name, tensor in tensors(parity_folder, "vqa_state_dict").items()}
    torch.save({"model": state, "epoch": 29}, folder / "official.pth")
    (folder / "tokenizer").mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
    others = iter([*letters, *(f"word{i}" for i in range(500))])
    vocabulary = [SPECIAL.get(number) or next(others) for number in range(500)]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(vocabulary))
    assert make_shards(["vqa", "phantoms", "--output", str(folder / "vqa"), "--count", "12", "--side", "64", "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_official_file_evaluates(folder: Path, protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / protocol
    words = ["--checkpoint", folder / "official.pth", "--tokenizer", folder / "tokenizer", "--shards", folder / "vqa"]
    words += ["--protocol", protocol, "--precision", "float32", "--output", output, *HEADS]
    assert evaluate([str(word) for word in words]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["configuration"]["vision"]["image_size"] == 96, "the file's own resolution"
    assert results["trained"]["protocol"].startswith("unknown")
    assert results["views"]["test"]["model"]["overall"]["total"] > 10
    assert ("It was trained under unknown" in capsys.readouterr().out) == (protocol == "clean")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "{folder}/official.pth"], "carries no tokenizer"),
        (["--checkpoint", "{parity}/pretrain_checkpoint.pth", "--tokenizer", "{folder}/tokenizer"], "has no answer decoder"),
        (["--checkpoint", "{folder}/vqa/index.json", "--tokenizer", "{folder}/tokenizer"], "Cannot read"),
    ],
)
def test_what_cannot_be_evaluated(
    folder: Path, parity_folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(folder=folder, parity=parity_folder) for word in words]
    assert evaluate([*filled, "--shards", str(folder / "vqa")]) == 2
    assert message in capsys.readouterr().err
