"""Where a model's weights come from before the first step, as the ``start.*`` settings name it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from m2i2.config import ObjectivesConfig, StartConfig, TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.files import read_object
from m2i2.models.bounds import require_described
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start_image import start_image
from m2i2.models.start_text import start_decoder, start_text
from m2i2.models.text import TextModel
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import State, load, of_student, read_described, read_state, resize_positions, to_answering
from m2i2.options import from_dict, to_dict

_OTHER_WIDTH = {
    r"text_decoder\..*\.crossattention\.self\.(key|value)\..*": "they read the question, which is not as wide as the image"
}


def silence_images(text: TextModel) -> str:
    """Give the cross-attention of all multimodal layers a zero output (``start.cross_attention=zero``)."""
    for layer in text.encoder.layers(text.config.fusion_layer):
        torch.nn.init.zeros_(layer.crossattention.output.dense.weight)
    return "cross-attention to the image starts with an output of zero"


def checkpoint_state(path: Path) -> tuple[State, str]:
    """The student's state of one of our checkpoints (a folder), or of an official ``.pth``, and what to call it."""
    if path.is_dir():
        return read_state(path / "model.safetensors"), str(path)
    return of_student(read_state(path)), f"the official checkpoint {path}"


def start_pretraining(model: PretrainingModel, start: StartConfig) -> list[str]:
    """Give a pretraining model its start weights; returns a line for each source.

    ``start.checkpoint`` names a checkpoint folder or file itself here, as `find_checkpoint` gives it.
    """
    if start.checkpoint:
        state, what = checkpoint_state(Path(start.checkpoint))
        return [f"all weights from {what}: {load(model, state, what)}"]
    lines = []
    if start.text:
        lines.append(start_text(model, start.text))
    if start.image:
        lines.append(start_image(model, start.image))
    lines = lines or ["All weights start at random."]
    return [*lines, silence_images(model.text_encoder.bert)] if start.cross_attention == "zero" else lines


def start_answering(model: VQAModel, start: StartConfig, multimodal_decoder: bool) -> list[str]:
    """Give an answering model its start weights: a pretraining checkpoint's by the official key surgery, or BERT and ViT.

    With ``multimodal_decoder`` the answer decoder starts as the pretrained multimodal layers (official code); else from the
    text start (paper), whose BERT has no cross-attention: that is fresh. A decoder that has learned to answer is kept.
    """
    fusion = model.text.fusion_layer
    fresh = _OTHER_WIDTH if model.vision.width != model.text.width else {}
    lines: list[str] = []
    answers = False
    if start.checkpoint:
        state, what = checkpoint_state(Path(start.checkpoint))
        answers = any(key.startswith("text_decoder.") for key in state)
        if not answers:
            state = to_answering(state, fusion, model.vision.patches)
        elif state["visual_encoder.pos_embed"].shape != model.visual_encoder.pos_embed.shape:
            state["visual_encoder.pos_embed"] = resize_positions(state["visual_encoder.pos_embed"], model.vision.patches)
        plain = {key: tensor for key, tensor in state.items() if not key.endswith("position_ids")}
        report = load(model, plain, what, fresh={} if answers else fresh)
        lines.append(f"all weights from {what}: {report}")
    elif start.text or start.image:
        pretraining = PretrainingModel(model.vision, model.text, ObjectivesConfig())
        if start.image:
            lines.append(start_image(pretraining, start.image))
        if start.text:
            lines.append(start_text(pretraining, start.text))
        load(model, to_answering(pretraining.state_dict(), fusion, model.vision.patches), "the start weights", fresh=fresh)
    if not (multimodal_decoder or answers):
        if start.text:
            lines.append(f"answer decoder's own layers from {start.text}: {start_decoder(model, start.text)}")
        elif start.checkpoint:
            lines.append("The answer decoder starts as the multimodal layers: answering.decoder_start=text needs a start.text.")
    lines = lines or ["All weights start at random."]
    # the multimodal encoder's alone: the decoder has to hear the question from the first step
    return [*lines, silence_images(model.text_encoder)] if start.cross_attention == "zero" and not start.checkpoint else lines


def official_answering(path: Path) -> tuple[State, VisionConfig, TextConfig]:
    """An official VQA file's weights, and its architecture at its own resolution; M2I2Error for one that cannot answer."""
    state, vision, text = official_model(path)
    if not any(key.startswith("text_decoder.") for key in state):
        raise M2I2Error(f"{path} has no answer decoder: it is a pretraining checkpoint. Finetune it first (--checkpoint {path}).")
    return state, vision, text


def official_model(path: Path) -> tuple[State, VisionConfig, TextConfig]:
    """The student of an official file, and its architecture; M2I2Error for a file that is none."""
    state, described = read_described(path)
    state = of_student(state)
    try:
        vision, text = official_architecture(state)
    except (KeyError, ValueError, IndexError) as e:
        raise M2I2Error(f"{path} is not an official M2I2 file ({type(e).__name__}: {e}).") from e
    return state, *with_stored(vision, text, described)


def stored_architecture(checkpoint: Path) -> tuple[VisionConfig, TextConfig]:
    """Vision and text settings stored with one of our checkpoints."""
    path = checkpoint / "config.json"
    try:
        stored = read_object(path, "checkpoint's settings")
        vision, text = from_dict(VisionConfig, stored["vision"]), from_dict(TextConfig, stored["text"])
    except (M2I2Error, KeyError) as e:
        raise M2I2Error(f"{path} does not describe a model ({e}); name a checkpoint of this project.") from e
    weights = checkpoint / "model.safetensors"
    if weights.exists():
        require_described(vision, text, weights.stat().st_size, str(checkpoint))
    return vision, text


def with_stored(vision: VisionConfig, text: TextConfig, described: Mapping[str, Any]) -> tuple[VisionConfig, TextConfig]:
    """The same with what no tensor shows, where a file that we wrote (``described``: its ``config``) tells it."""
    found: list[Any] = []
    for name, read, hidden in (("vision", vision, _HIDDEN_OF_VISION), ("text", text, _HIDDEN_OF_TEXT)):
        stored = described.get(name)
        if not isinstance(stored, Mapping):  # the official code's own file
            return vision, text
        given = {**to_dict(read), **{key: stored[key] for key in hidden if key in stored}}
        found.append(from_dict(type(read), given))
    return found[0], found[1]


_HIDDEN_OF_VISION = ("heads", "activation", "layer_norm_eps", "decoder_heads")
_HIDDEN_OF_TEXT = ("heads", "layer_norm_eps", "dropout", "attention_dropout", "initializer_range")


def official_architecture(state: State) -> tuple[VisionConfig, TextConfig]:
    """Vision and text settings read off an official state's shapes; heads are 64 wide, as in every published model."""
    width = state["visual_encoder.cls_token"].shape[-1]
    patch = state["visual_encoder.patch_embed.proj.weight"].shape[-1]
    side = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"visual_encoder\.blocks\.(\d+)\.", k)))
    prefix = "text_encoder.bert." if "text_encoder.bert.embeddings.word_embeddings.weight" in state else "text_encoder."
    words = state[f"{prefix}embeddings.word_embeddings.weight"]
    layers = [int(m[1]) for k in state if (m := re.match(re.escape(prefix) + r"encoder\.layer\.(\d+)\.", k))]
    crossed = [int(m[1]) for k in state if (m := re.match(re.escape(prefix) + r"encoder\.layer\.(\d+)\.cross", k))]
    decoder = [int(m[1]) for k in state if (m := re.match(r"text_decoder\.bert\.encoder\.layer\.(\d+)\.", k))]
    text_width = words.shape[1]
    pixels: dict[str, Any] = {}
    if "visual_encoder.decoder_embed.weight" in state:  # decoder heads are 32 wide, as MAE's
        pixel_width = state["visual_encoder.decoder_embed.weight"].shape[0]
        blocks = {int(m[1]) for k in state if (m := re.match(r"visual_encoder\.decoder_blocks\.(\d+)\.", k))}
        pixels = {"decoder_width": pixel_width, "decoder_depth": len(blocks), "decoder_heads": max(1, pixel_width // 32)}
    vision = VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=max(1, width // 64),
        pre_norm="visual_encoder.norm_pre.weight" in state,
        **pixels,
    )
    text = TextConfig(
        vocabulary_size=words.shape[0],
        width=text_width,
        depth=max(layers) + 1,
        fusion_layer=min(crossed),
        heads=max(1, text_width // 64),
        intermediate=state[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        positions=state[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
        decoder_depth=(max(decoder) + 1) if decoder else max(layers) + 1 - min(crossed),
    )
    return vision, text
