"""The text stacks' start: any BERT with a WordPiece vocabulary, as Hugging Face writes them."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from m2i2.config import TextConfig
from m2i2.errors import M2I2Error, shown
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import initialise_bert
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import State, load, read_described

_CROSS = {r".*crossattention.*": "cross-attention is not part of BERT"}
_POOLER = {
    r".*pooler.*": "pooler",
    r".*seq_relationship.*": "next-sentence head",
    r"classifier\..*": "classification head",
    r".*position_ids": "a constant",
}
_TIED = {r"predictions\.decoder\..*": "tied to the embeddings", r"seq_relationship\..*": "next-sentence head"}


def start_text(model: PretrainingModel, source: str) -> str:
    """Start the text and multimodal encoder from a BERT; returns what became of its keys.

    M2I2Error where it is another model than the settings describe.
    """
    state = _read(model.text, source)
    bert, head = model.text_encoder.bert, model.text_encoder.cls
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith("cls.")}
    positions = "embeddings.position_embeddings.weight"
    wanted = bert.embeddings.position_embeddings.weight.shape[0]
    if positions in encoder and len(encoder[positions]) > wanted:
        encoder[positions] = encoder[positions][:wanted]
    text = f"text from {source}: {load(bert, encoder, source, fresh=_CROSS, unused=_POOLER)}"
    predictions = {k.removeprefix("cls."): t for k, t in state.items() if k.startswith("cls.")}
    if "predictions.transform.dense.weight" in predictions:
        predictions.setdefault("predictions.bias", predictions.get("predictions.decoder.bias", torch.empty(0)))
        return f"{text}; vocabulary head: {load(head, predictions, source, unused=_TIED)}"
    return f"{text}; vocabulary head fresh (the file has none)"


def start_decoder(model: VQAModel, source: str) -> str:
    """Start the answer decoder's own layers as the last ones of a BERT, and its cross-attention afresh."""
    state = _read(model.text, source)
    first = _depth(state) - model.text.decoder_depth
    decoder = model.text_decoder.bert.encoder
    theirs = {
        re.sub(r"^encoder\.layer\.\d+", f"layer.{number}", key): tensor
        for number in range(model.text.decoder_depth)
        for key, tensor in state.items()
        if key.startswith(f"encoder.layer.{number + first}.")
    }
    for layer in decoder.layers():
        initialise_bert(layer.crossattention, model.text.initializer_range)
        layer.crossattention.output.LayerNorm.reset_parameters()
    return str(load(decoder, theirs, source, fresh=_CROSS))


def bert_names(state: State, source: str = "the file") -> State:
    """BERT under our names: embeddings.*, encoder.layer.*, and cls.* where it has a vocabulary head."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"^bert\.", "", key)
        key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
        key = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)
        renamed[key] = tensor
    words = renamed.get("embeddings.word_embeddings.weight")
    if words is None or words.dim() != 2:
        raise M2I2Error(f"{source} is not a BERT: it has no embeddings.word_embeddings ({', '.join(list(state)[:4])} ...).")
    return renamed


def _read(config: TextConfig, source: str) -> State:
    """A BERT under our names; M2I2Error, with the settings to give, where it is another model than ``config`` describes."""
    state, described = read_described(source)
    told = _described(described, source)
    state = bert_names(state, source)
    told |= {"width": state["embeddings.word_embeddings.weight"].shape[-1], "depth": _depth(state)}
    inner = state.get("encoder.layer.0.intermediate.dense.weight")
    if inner is not None and inner.dim() == 2:
        told["intermediate"] = inner.shape[0]
    differs = {name: value for name, value in told.items() if getattr(config, name) != value}
    if differs:
        listed = "; ".join(f"text.{name} is {shown(value)} there, {getattr(config, name)} here" for name, value in differs.items())
        words = " ".join(f"text.{name}={shown(value)}" for name, value in differs.items())
        raise M2I2Error(
            f"{source} is another model than the settings describe: {listed}. Give {words}, or name another start.text."
        )
    return state


def _depth(state: State) -> int:
    return 1 + max((int(match[1]) for key in state if (match := re.match(r"encoder\.layer\.(\d+)\.", key))), default=-1)


def _described(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings that a config.json of Hugging Face tells and no tensor shows; M2I2Error for what is not a plain BERT."""
    if "model_type" not in described:
        return {}
    for key, wanted in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (found := described.get(key, wanted)) != wanted:
            raise M2I2Error(f"{source} is not a plain BERT: its config.json says {key}={shown(found)}, not {wanted}.")
    return {"heads": described.get("num_attention_heads", 12), "layer_norm_eps": described.get("layer_norm_eps", 1e-12)}
