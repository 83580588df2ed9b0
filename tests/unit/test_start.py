"""Start weights in the hub's own formats: loaded, and computing what their makers' code computes."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2i2.config import ObjectivesConfig, StartConfig, TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start import start_answering, start_pretraining
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import load, read_state, resize_positions
from m2i2.training.checkpoint import find_checkpoint
from m2i2.training.tensor_files import write_tensors

VISION = VisionConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
TEXT = TextConfig(vocabulary_size=60, width=16, depth=4, fusion_layer=2, heads=2, intermediate=32, positions=20)


@pytest.fixture
def model() -> PretrainingModel:
    torch.manual_seed(1)
    return PretrainingModel(VISION, TEXT, ObjectivesConfig(projection=8, queue=4)).eval()


def bert_config(**changes: int) -> object:
    from transformers import BertConfig

    values = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
    }
    return BertConfig(**{**values, **changes})


def test_a_sharded_folder_reads_whole(tmp_path: Path) -> None:
    from transformers import BertModel

    theirs = BertModel(bert_config())
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    state = read_state(tmp_path)
    assert sorted(state) == sorted(theirs.state_dict())


def test_resized_positions_keep_a_linear_field_linear() -> None:
    ramp = torch.arange(36.0).reshape(6, 6)
    table = torch.cat([torch.tensor([99.0]), ramp.flatten()]).reshape(1, 37, 1)
    resized = resize_positions(table, 144)[0, :, 0]
    assert resized[0] == 99
    inner = resized[1:].reshape(12, 12)[4:8, 4:8]
    torch.testing.assert_close(inner[:, 1:] - inner[:, :-1], torch.full((4, 3), 0.5), atol=0.11, rtol=0)


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "config": Evil(str(tmp_path / "marker"))}, tmp_path / "evil.pth")
    with pytest.raises(M2I2Error, match="refused because loading them would run code"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        out = io.BytesIO()
        torch.save({"a": torch.zeros(100)}, out)
        content = out.getvalue()[:300]
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(M2I2Error, match=name.replace(".", r"\.")):
            read_state(tmp_path / name)


def test_every_key_is_accounted_for(model: PretrainingModel) -> None:
    state = dict(model.state_dict())
    assert str(load(model, state, "itself")) == f"{len(state)} tensors loaded"
    wrong = {**state, "surprise": torch.zeros(1), "itm_head.bias": torch.zeros(3)}
    del wrong["text_proj.bias"]
    with pytest.raises(M2I2Error) as caught:
        load(model, wrong, "the file")
    for part in ("in 3 keys", "surprise is unknown", "itm_head.bias is (3,) there, (2,) in the model", "text_proj.bias is missing"):
        assert part in str(caught.value)


def test_an_image_can_start_with_nothing_to_say(tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel(bert_config()).save_pretrained(tmp_path)
    ids, mask, images = torch.tensor([[2, 9, 31, 3]]), torch.ones(1, 4, dtype=torch.long), torch.randn(2, 1, 3, 32, 32)

    text = replace(TEXT, decoder_depth=2)

    def fused(model: VQAModel, image: Tensor) -> Tensor:
        return model.eval().encode_question(ids, mask, model.encode_image(image))

    for cross, unmoved in (("random", False), ("zero", True)):
        model = VQAModel(VISION, text)
        lines = start_answering(model, StartConfig(text=str(tmp_path), cross_attention=cross), multimodal_decoder=False)
        assert ("output of zero" in lines[-1]) == unmoved
        assert torch.equal(fused(model, images[0]), fused(model, images[1])) == unmoved
        model.answer_logits(images[0], ids, mask, ids[:, :3]).sum().backward()
        projection = model.text_encoder.encoder.layers(TEXT.fusion_layer)[0].crossattention.output.dense.weight.grad
        assert projection is not None and projection.abs().max() > 0, "training can let it in"
        assert model.text_decoder.bert.encoder.layers()[0].crossattention.output.dense.weight.abs().max() > 0
        pretraining = PretrainingModel(VISION, TEXT, ObjectivesConfig(projection=8, queue=4))
        start_pretraining(pretraining, StartConfig(text=str(tmp_path), cross_attention=cross))
        crossing = pretraining.text_encoder.bert.encoder.layers(TEXT.fusion_layer)[0].crossattention
        assert (crossing.output.dense.weight.abs().max() == 0) == unmoved


def test_the_decoder_of_the_paper_starts_from_bert_alone(tmp_path: Path) -> None:
    from transformers import BertModel

    bert = BertModel(bert_config())
    bert.save_pretrained(tmp_path / "bert")
    text = replace(TEXT, decoder_depth=2)
    pretrained = PretrainingModel(VISION, TEXT, ObjectivesConfig(projection=8, queue=4))
    crossing = pretrained.text_encoder.bert.encoder.layers(TEXT.fusion_layer)[0].crossattention.output.dense.weight
    (tmp_path / "pretrained").mkdir()
    write_tensors(tmp_path / "pretrained" / "model.safetensors", pretrained.state_dict())
    start = StartConfig(checkpoint=str(tmp_path / "pretrained"), text=str(tmp_path / "bert"))

    def decoder(start: StartConfig, multimodal_decoder: bool) -> tuple[VQAModel, list[str]]:
        model = VQAModel(VISION, text)
        return model, start_answering(model, start, multimodal_decoder)

    model, _ = decoder(start, False)
    layer = model.text_decoder.bert.encoder.layers()[0]
    assert torch.equal(layer.attention.self.query.weight, bert.encoder.layer[2].attention.self.query.weight)
    assert not torch.equal(layer.crossattention.output.dense.weight, crossing)
    (tmp_path / "answering").mkdir()
    write_tensors(tmp_path / "answering" / "model.safetensors", model.state_dict())
    again, _ = decoder(replace(start, checkpoint=str(tmp_path / "answering")), False)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()), "it stays as it was"
    for wanted, multimodal in ((start, True), (replace(start, text=""), False)):
        model, lines = decoder(wanted, multimodal)
        assert torch.equal(model.text_decoder.bert.encoder.layers()[0].crossattention.output.dense.weight, crossing)
        assert ("needs a start.text" in lines[-1]) != multimodal
    with pytest.raises(M2I2Error, match="missing"):
        start_answering(VQAModel(VISION, replace(TEXT, decoder_depth=5)), StartConfig(text=str(tmp_path / "bert")), False)


def test_names_that_are_nowhere_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = PretrainingModel(VISION, TEXT, ObjectivesConfig(projection=8, queue=4))
    with pytest.raises(M2I2Error, match="download it elsewhere"):
        start_pretraining(model, StartConfig(text="somebody/no-such-bert"))
    with pytest.raises(M2I2Error, match="There is no file or folder"):
        start_pretraining(model, StartConfig(image=str(tmp_path / "missing.pth")))
    with pytest.raises(M2I2Error, match="There is no checkpoint"):
        find_checkpoint(tmp_path / "missing")
