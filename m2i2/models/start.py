"""Where a model's weights come from before the first step, as the ``start.*`` settings name it."""

import re
from pathlib import Path

import torch

from m2i2.config import StartConfig, TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.files import read_object
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import TextModel, initialise_bert
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import State, load, of_student, read_state, resize_positions, to_answering

_CROSS = {r".*crossattention.*": "cross-attention is not part of BERT"}
_POOLER = {
    r".*pooler.*": "pooler",
    r".*seq_relationship.*": "next-sentence head",
    r".*position_ids": "a constant",
}
_TIED = {r"predictions\.decoder\..*": "tied to the embeddings", r"seq_relationship\..*": "next-sentence head"}
_PIXELS = {r"(decoder_.*|mask_token)": "the file has no pixel decoder"}
_IMAGE_LEFT = {
    r"(head|fc_norm|head_drop)\..*": "classification head",
    r"pooler\..*": "pooler",
}


def bert_names(state: State) -> State:
    """BERT under our names: embeddings.*, encoder.layer.*, and cls.* where it has a vocabulary head."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"^bert\.", "", key)
        key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
        key = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)
        renamed[key] = tensor
    if not any(key.startswith("embeddings.word_embeddings") for key in renamed):
        raise M2I2Error(f"This is no BERT: it has no embeddings.word_embeddings ({', '.join(list(state)[:4])} ...).")
    return renamed


def start_text(model: PretrainingModel, source: str) -> str:
    """Start the text and multimodal encoder from a BERT; returns what became of its keys."""
    state = bert_names(read_state(source))
    bert, head = model.text_encoder.bert, model.text_encoder.cls
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith("cls.")}
    positions = "embeddings.position_embeddings.weight"
    wanted = bert.embeddings.position_embeddings.weight.shape[0]
    if positions in encoder and len(encoder[positions]) > wanted:
        encoder[positions] = encoder[positions][:wanted]
    report = load(bert, encoder, source, fresh=_CROSS, unused=_POOLER)
    text = f"text from {source}: {report}"
    predictions = {k.removeprefix("cls."): t for k, t in state.items() if k.startswith("cls.")}
    if "predictions.transform.dense.weight" in predictions:
        predictions.setdefault("predictions.bias", predictions.get("predictions.decoder.bias", torch.empty(0)))
        text += f"; vocabulary head: {load(head, predictions, source, unused=_TIED)}"
    else:
        text += "; vocabulary head fresh (the file has none)"
    return text


def silence_images(text: TextModel) -> str:
    """Give the cross-attention of all multimodal layers a zero output (``start.cross_attention=zero``)."""
    for layer in text.encoder.layers(text.config.fusion_layer):
        torch.nn.init.zeros_(layer.crossattention.output.dense.weight)
    return "cross-attention to the image starts with an output of zero"


def vit_names(state: State) -> State:
    """A ViT or MAE under our names: timm's and MAE's own as they are, Hugging Face's renamed, LayerScale folded in."""
    if any(re.search(r"\.attention\.(attention\.query|q_proj)\.", key) for key in state):
        state = from_hugging_face(state)
    folded = dict(state)
    for key, scale in state.items():
        match = re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", key)
        if match:
            name = match[1] + ("attn.proj" if match[2] == "1" else "mlp.fc2")
            folded[f"{name}.weight"] = state[f"{name}.weight"] * scale[:, None]
            folded[f"{name}.bias"] = state[f"{name}.bias"] * scale
            del folded[key]
    if "patch_embed.proj.weight" not in folded:
        raise M2I2Error(f"This is no ViT or MAE: it has no patch embedding ({', '.join(list(state)[:4])} ...).")
    return folded


def from_hugging_face(state: State) -> State:
    """Hugging Face's names of a ViT, MAE or DINOv2 as timm's; queries, keys and values in one."""
    renamed: State = {}
    names = (
        (r"^vit\.", ""),
        (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
        # transformers 5 writes decoder_encoder.layer where the published files have decoder_layers
        (r"^decoder\.decoder_(layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\2."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"^decoder\.(decoder_\w+|mask_token)", r"\1"),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^classifier\.", "head."),
    )
    for key, tensor in state.items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    for key in [k for k in renamed if k.endswith(".attention.attention.query.weight")]:
        prefix = key.removesuffix("attention.attention.query.weight")
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"{prefix}attention.attention.{n}.{kind}") for n in ("query", "key", "value")]
            renamed[f"{prefix}attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


def start_image(model: PretrainingModel, source: str) -> str:
    """Start the image encoder (and the pixel decoder, where the file has one) from a ViT or MAE.

    Positions: ours stay. In pretraining they are the fixed sin-cos ones, as MAE's are, so that a table for another
    resolution is computed rather than interpolated; a ViT with learnt positions brings its own, interpolated.
    """
    if source.startswith("timm:"):
        state = vit_names(_from_timm(source.removeprefix("timm:")))
    else:
        state = vit_names(read_state(source))
    encoder = model.visual_encoder
    own = encoder.state_dict()
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in state and state[name].shape != own[name].shape:
            state[name] = resize_positions(state[name].float(), encoder.config.patches)
            if "decoder_pred.weight" in state:  # MAE: sin-cos on both grids, ours is exact
                state[name] = own[name]
    report = load(encoder, state, source, fresh=_PIXELS, unused=_IMAGE_LEFT)
    return f"image from {source}: {report}"


def _from_timm(name: str) -> State:
    import timm

    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as e:
        raise M2I2Error(
            f"timm cannot give the weights of {name!r} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}). "
            f"Without a connection, save its state_dict elsewhere and name that file: start.image=FILE."
        ) from e


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
    lines: list[str] = []
    answers = False
    if start.checkpoint:
        state, what = checkpoint_state(Path(start.checkpoint))
        answers = any(key.startswith("text_decoder.") for key in state)
        if not answers:
            state = to_answering(state, fusion, model.vision.patches)
        elif state["visual_encoder.pos_embed"].shape != model.visual_encoder.pos_embed.shape:
            state["visual_encoder.pos_embed"] = resize_positions(state["visual_encoder.pos_embed"], model.vision.patches)
        report = load(model, {k: t for k, t in state.items() if not k.endswith("position_ids")}, what)
        lines.append(f"all weights from {what}: {report}")
    elif start.text or start.image:
        from m2i2.config import ObjectivesConfig

        pretraining = PretrainingModel(model.vision, model.text, ObjectivesConfig())
        if start.image:
            lines.append(start_image(pretraining, start.image))
        if start.text:
            lines.append(start_text(pretraining, start.text))
        load(model, to_answering(pretraining.state_dict(), fusion, model.vision.patches), "the start weights")
    if not (multimodal_decoder or answers):
        if start.text:
            lines.append(f"answer decoder's own layers from {start.text}: {_start_decoder(model, start.text)}")
        elif start.checkpoint:
            lines.append("The answer decoder starts as the multimodal layers: answering.decoder_start=text needs a start.text.")
    lines = lines or ["All weights start at random."]
    # the multimodal encoder's alone: the decoder has to hear the question from the first step
    return [*lines, silence_images(model.text_encoder)] if start.cross_attention == "zero" and not start.checkpoint else lines


def _start_decoder(model: VQAModel, source: str) -> str:
    """Start the answer decoder's own layers as the last ones of a BERT, and its cross-attention afresh."""
    state = bert_names(read_state(source))
    layers = {int(m[1]) for k in state if (m := re.match(r"encoder\.layer\.(\d+)\.", k))}
    first = max(layers) + 1 - model.text.decoder_depth
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


def official_answering(path: Path) -> tuple[State, VisionConfig, TextConfig]:
    """An official VQA file's weights, and its architecture at its own resolution; M2I2Error for one that cannot answer."""
    state = of_student(read_state(path))
    if not any(key.startswith("text_decoder.") for key in state):
        raise M2I2Error(f"{path} has no answer decoder: it is a pretraining checkpoint. Finetune it first (--checkpoint {path}).")
    try:
        vision, text = official_architecture(state)
    except (KeyError, ValueError) as e:
        raise M2I2Error(f"{path} is no official M2I2 file ({type(e).__name__}: {e}).") from e
    return state, vision, text


def stored_architecture(checkpoint: Path) -> tuple[VisionConfig, TextConfig]:
    """Vision and text settings stored with one of our checkpoints."""
    from m2i2.options import from_dict

    path = checkpoint / "config.json"
    try:
        stored = read_object(path, "checkpoint's settings")
        return from_dict(VisionConfig, stored["vision"]), from_dict(TextConfig, stored["text"])
    except (M2I2Error, KeyError) as e:
        raise M2I2Error(f"{path} does not describe a model ({e}); name a checkpoint of this project.") from e


def official_architecture(state: State, heads_of_64: bool = True) -> tuple[VisionConfig, TextConfig]:
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
    pixels = {}
    if "visual_encoder.decoder_embed.weight" in state:  # decoder heads are 32 wide, as MAE's
        pixel_width = state["visual_encoder.decoder_embed.weight"].shape[0]
        blocks = {int(m[1]) for k in state if (m := re.match(r"visual_encoder\.decoder_blocks\.(\d+)\.", k))}
        pixels = {"decoder_width": pixel_width, "decoder_depth": len(blocks), "decoder_heads": max(1, pixel_width // 32)}
    vision = VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=max(1, width // 64) if heads_of_64 else 1,
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
