"""The real MiniLM starts our text encoder, whose lower layers then compute what transformers computes."""

from pathlib import Path

import torch

from m2i2.config import ObjectivesConfig
from m2i2.data.text.tokenizer import load_tokenizer
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start_text import start_text
from m2i2.presets import preset


def test_minilm(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = minilm
    tokenizer = load_tokenizer(folder)
    assert tokenizer.size == 30522
    long = "right lower lobe opacity, suspicious of pneumonia " * 30
    assert len(tokenizer.encode(long, 400)) > 128, "its stored truncation is off"
    text = "Chest X-ray: no pleural effusion"
    assert tokenizer.encode(text, 64) == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    config = preset("small")[0]
    model = PretrainingModel(config.vision, config.text, ObjectivesConfig(queue=4)).eval()
    assert "101 tensors loaded" in start_text(model, str(folder))
    ids = torch.tensor([tokenizer.encode(text, 64)])
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder).eval()(input_ids=ids, output_hidden_states=True)
        ours = model.text_encoder.bert.encode(ids, torch.ones_like(ids))
    layers = config.text.fusion_layer
    torch.testing.assert_close(ours, theirs.hidden_states[layers], atol=1e-5, rtol=0)
