"""The readers of checkpoints: the manifest, the settings and the state of the run, tensors, weights from elsewhere."""

import io
import json
from pathlib import Path

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from safetensors.torch import save

from m2i2.config import PretrainingConfig
from m2i2.data.text.tokenizer import load_tokenizer, train_tokenizer
from m2i2.errors import M2I2Error
from m2i2.models.start import stored_architecture
from m2i2.models.weights import read_state as read_weights
from m2i2.options import read_settings, to_dict
from m2i2.training.checkpoint import Checkpoints, read_config, read_run_state, read_tensors, seal
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes, mutated_json

_TENSORS = {"a": torch.arange(4.0), "b.c": torch.ones(2, 2, dtype=torch.bfloat16), "n": torch.tensor([1])}


def _manifest(folder: Path) -> Opened:
    checkpoint = folder / "step-00000007"
    (checkpoint / "tokenizer").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(save(_TENSORS))
    (checkpoint / "tokenizer" / "vocab.txt").write_text("word\n")
    seal(checkpoint)

    def read(data: bytes) -> None:
        (checkpoint / "manifest.json").write_bytes(data)
        found, passed_over = Checkpoints(folder).newest()
        if found is None:
            raise M2I2Error(str(passed_over))

    return Opened([(checkpoint / "manifest.json").read_bytes()], read)


def _settings(folder: Path) -> Opened:
    values = to_dict(PretrainingConfig())

    def read(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        read_config(PretrainingConfig, folder)
        stored_architecture(folder)
        values = json.loads(data)
        values.pop("stage")
        (folder / "settings.json").write_text(json.dumps(values))
        read_settings(PretrainingConfig, folder / "settings.json")

    return Opened([json.dumps({"stage": "PretrainingConfig", **values}).encode()], read)


def _state(folder: Path) -> Opened:
    def read(data: bytes) -> None:
        (folder / "state.json").write_bytes(data)
        read_run_state(folder)

    return Opened([b'{"step": 7, "optimizer_steps": 7, "skipped_steps": 0, "data": "0/train"}'], read)


def _safetensors(folder: Path) -> Opened:
    path = folder / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for tensor in [*read_tensors(path).values(), *read_weights(path).values()]:
            tensor.clone()

    return Opened([save(_TENSORS), save({"x": torch.zeros(0, 3)})], read)


@st.composite
def _changed_safetensors(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """A changed header, with its true length or another one, before the body."""
    data = draw(st.sampled_from(seeds))
    length = int.from_bytes(data[:8], "little")
    header = draw(mutated_json([data[8 : 8 + length]]))
    claimed = draw(st.sampled_from([len(header)] * 5 + [0, 1, 1 << 27, (1 << 64) - 1]))
    return claimed.to_bytes(8, "little") + header + data[8 + length :]


def _pth(folder: Path) -> Opened:
    path = folder / "model.pth"
    seeds = []
    for new in (True, False):
        out = io.BytesIO()
        torch.save({"model": _TENSORS, "epoch": 3}, out, _use_new_zipfile_serialization=new)
        seeds.append(out.getvalue())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for tensor in read_weights(path).values():
            tensor.clone()

    return Opened(seeds, read)


def _parts(folder: Path) -> Opened:
    (folder / "part-1.safetensors").write_bytes(save(_TENSORS))

    def read(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        read_weights(folder)

    return Opened(
        [b'{"metadata": {"total_size": 32}, "weight_map": {"a": "part-1.safetensors", "b.c": "part-1.safetensors"}}'], read
    )


def _tokenizer(folder: Path) -> Opened:
    train_tokenizer(["an image of a lung", "the heart is large"], 60).save(folder)
    seed = (folder / "tokenizer.json").read_bytes()

    def read(data: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(data)
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode("The heart, or another organ?", 12)
        assert max(ids) < tokenizer.size
        tokenizer.decode(ids)

    return Opened([seed], read)


def _vocabulary(folder: Path) -> Opened:
    train_tokenizer(["an image of a lung", "the heart is large"], 60).save(folder)
    (folder / "tokenizer.json").unlink()

    def read(data: bytes) -> None:
        (folder / "vocab.txt").write_bytes(data)
        tokenizer = load_tokenizer(folder)
        assert max(tokenizer.encode("The heart, or another organ?", 12)) < tokenizer.size

    return Opened([(folder / "vocab.txt").read_bytes()], read)


READERS = [
    Reader("manifest of a checkpoint", _manifest, mutated_json),
    Reader("settings", _settings, mutated_json),
    Reader("state of a run", _state, mutated_json),
    Reader("safetensors", _safetensors, either(_changed_safetensors, mutated_bytes)),
    Reader("weights in .pth", _pth, mutated_bytes),
    Reader("index of weights", _parts, mutated_json),
    Reader("tokenizer.json", _tokenizer, mutated_json),
    Reader("vocab.txt", _vocabulary, mutated_bytes),
]
