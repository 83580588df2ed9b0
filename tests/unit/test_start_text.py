"""BERTs as Hugging Face's classes write them start the text stacks, which then compute what those classes compute."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start_text import start_text

VISION = VisionConfig(image_size=32, patch_size=8, width=24, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
TEXT = TextConfig(vocabulary_size=60, width=16, depth=4, fusion_layer=2, heads=2, intermediate=32, positions=20)
IDS = torch.tensor([[2, 9, 31, 7], [2, 8, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def model(text: TextConfig = TEXT) -> PretrainingModel:
    torch.manual_seed(1)
    return PretrainingModel(VISION, text, ObjectivesConfig(projection=8, queue=4)).eval()


def bert(kind: str = "BertModel", **changes: Any) -> Any:
    """One of transformers' BERTs with weights that are not small."""
    import transformers

    torch.manual_seed(2)
    values = {
        **{"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
        **{"intermediate_size": 32, "max_position_embeddings": 20, "initializer_range": 0.2},
    }
    return getattr(transformers, kind)(transformers.BertConfig(**{**values, **changes})).eval()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the first published BERTs have them (bert-base-chinese among them)."""
    renamed = {}
    for key, tensor in state.items():
        renamed[key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    return renamed


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"])
@pytest.mark.parametrize("written", ["safetensors", "bin", "old names"])
def test_the_states_are_those_of_transformers(tmp_path: Path, kind: str, written: str) -> None:
    theirs, ours = bert(kind), model()
    theirs.save_pretrained(tmp_path)
    if written != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        state = theirs.state_dict()
        torch.save(old_names(state) if written == "old names" else state, tmp_path / "pytorch_model.bin")
    report = start_text(ours, str(tmp_path))
    assert "cross-attention is not part of BERT" in report
    inner = theirs if kind == "BertModel" else theirs.bert
    with torch.no_grad():
        hidden = inner(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[2]
        found = ours.text_encoder.bert.encode(IDS, MASK)
    torch.testing.assert_close(found[MASK.bool()], hidden[MASK.bool()], atol=1e-5, rtol=0)
    if not hasattr(theirs, "cls"):
        assert "vocabulary head fresh" in report
    else:
        states = torch.randn(3, 16)
        with torch.no_grad():
            torch.testing.assert_close(ours.text_encoder.logits(states), theirs.cls.predictions(states), atol=1e-5, rtol=0)


def test_cross_attention_reads_states_of_another_width() -> None:
    """As PyTorch's own attention with keys and values of 24 beside queries of 16."""
    layer = model().text_encoder.bert.encoder.layers(2)[0].crossattention.self
    theirs = torch.nn.MultiheadAttention(16, 2, kdim=24, vdim=24, batch_first=True)
    with torch.no_grad():
        for projection, weight in (("query", theirs.q_proj_weight), ("key", theirs.k_proj_weight), ("value", theirs.v_proj_weight)):
            weight.copy_(getattr(layer, projection).weight)
            getattr(layer, projection).bias.normal_()
        theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        theirs.out_proj.weight.copy_(torch.eye(16))
        theirs.out_proj.bias.zero_()
        text, image = torch.randn(2, 5, 16), torch.randn(2, 7, 24)
        expected, _ = theirs(text, image, image, need_weights=False)
        torch.testing.assert_close(layer(text, layer.keys_values(image), None), expected, atol=1e-5, rtol=0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 61}, r"word_embeddings.weight is \(61, 16\) there, \(60, 16\) in the model"),
    ({"num_attention_heads": 4}, r"text.heads is 4 there, 2 here\. Give text.heads=4, or name another start.text"),
    ({"num_hidden_layers": 3, "intermediate_size": 64}, "Give text.depth=3 text.intermediate=64, or"),
    ({"hidden_size": 32}, "text.width=32"),
    ({"layer_norm_eps": 1e-5}, "text.layer_norm_eps=1e-05"),
    ({"hidden_act": "relu"}, "not a plain BERT: its config.json says hidden_act='relu', not gelu"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_another_model_is_refused_with_its_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    bert(**changes).save_pretrained(tmp_path)
    with pytest.raises(M2I2Error, match=message):
        start_text(model(), str(tmp_path))


def test_the_settings_of_the_message_are_enough(tmp_path: Path) -> None:
    bert(num_hidden_layers=3, num_attention_heads=4).save_pretrained(tmp_path)
    assert "tensors loaded" in start_text(model(replace(TEXT, depth=3, heads=4)), str(tmp_path))


def test_what_only_looks_like_bert_is_refused(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(M2I2Error, match="model_type='roberta', not bert"):
        start_text(model(), str(tmp_path))
