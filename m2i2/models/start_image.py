"""The image encoder's start: a ViT, MAE, DINOv2 or CLIP vision tower, as timm and Hugging Face write them.

Shapes tell most of a model. What they do not tell (heads, activation, the norms' epsilon) is read from the file's description,
and a start that computes something else than the settings is refused with the settings that it needs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from m2i2.config import VisionConfig
from m2i2.errors import M2I2Error, shown
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vision import VisionTransformer
from m2i2.models.weights import State, load, read_described, resize_positions

_PIXELS = {r"(decoder_.*|mask_token)": "the file has no pixel decoder"}
_LEFT = {
    r"(head|fc_norm|head_drop)\..*": "classification head",
    r"pooler\..*": "pooler",
    r"encoder_mask_token": "mask token of its own pretraining",
    r"(text_model|text)\..*": "text tower",
    r"(visual_projection|text_projection|visual\.head)\..*|logit_scale|logit_bias": "the contrast's projections",
    r".*position_ids": "a constant",
}
_KINDS = {
    **dict.fromkeys(("vit", "vit_mae"), ("gelu", 1e-12)),
    **dict.fromkeys(("vit_msn", "dinov2"), ("gelu", 1e-6)),
    **dict.fromkeys(("clip", "clip_vision_model"), ("quick_gelu", 1e-5)),
}
"""Hugging Face's kinds of model that are read, with the activation and the norms' epsilon where config.json names none."""
_SMALLEST_EPS = 1e-6
"""Below it a norm's epsilon changes nothing that counts: Hugging Face writes 1e-12 for models that were trained with 1e-6."""


def start_image(model: PretrainingModel, source: str) -> str:
    """Start the image encoder (and the pixel decoder, where the file has one); returns what became of the file's keys.

    ``source``: a file, a folder in the hub's format, a name on the hub, or ``timm:NAME``. Positions: in pretraining MAE's are the
    fixed sin-cos ones, so that a table for another resolution is computed; learnt ones come along, interpolated.
    M2I2Error where the start is another model than the settings describe.
    """
    if source.startswith("timm:"):
        state, told = _from_timm(source.removeprefix("timm:"))
    else:
        state, described = read_described(source)
        _refuse_strangers(state, source)
        told = _described(described, source)
    state = vit_names(state, source)
    encoder = model.visual_encoder
    _require_same_model(encoder.config, {**_told_by_shapes(state), **told}, source)
    note = (
        "" if "heads" in told else "; heads, activation and the norms' epsilon are those of vision.*: the file does not tell them"
    )
    if "norm_pre.weight" in state and "patch_embed.proj.bias" not in state:
        state["patch_embed.proj.bias"] = torch.zeros(encoder.config.width)
        note = f", patch_embed.proj.bias zero (CLIP has none){note}"
    _fit_positions(state, encoder)
    return f"image from {source}: {load(encoder, state, source, fresh=_PIXELS, unused=_LEFT)}{note}"


# --- names


def vit_names(state: State, source: str = "the file") -> State:
    """A vision transformer under our names, which are timm's; what is not part of it keeps its name. LayerScale is folded in."""
    if any(key.startswith("visual.trunk.") for key in state):  # open_clip around timm, as BiomedCLIP
        state = {key.removeprefix("visual.trunk."): tensor for key, tensor in state.items()}
    _refuse_strangers(state, source)
    if any(key.endswith("embeddings.class_embedding") for key in state):
        state = _from_clip(state)
    elif any(re.search(r"\.attention\.(attention\.query|q_proj)\.", key) for key in state):
        state = from_hugging_face(state)
    if "patch_embed.proj.weight" not in state:
        raise M2I2Error(f"{source} is not a ViT, MAE, DINOv2 or CLIP that can be read: it has no patch embedding ({_some(state)}).")
    if "mask_token" in state and "decoder_embed.weight" not in state:
        state = {("encoder_mask_token" if key == "mask_token" else key): tensor for key, tensor in state.items()}
    return _folded(state)


_STRANGERS = (
    (r"(^|\.)(reg_token|register_tokens)$", "register tokens", "facebook/dinov2-small, not -with-registers; timm's without reg4"),
    (r"\.mlp\.(weights_in|gate_proj|w12)\.", "SwiGLU layers", "S, B and L have none, DINOv2's giant has"),
)


def _refuse_strangers(state: State, source: str) -> None:
    """M2I2Error for a model with parts that this image encoder does not have."""
    for pattern, what, instead in _STRANGERS:
        for key in state:
            if re.search(pattern, key):
                raise M2I2Error(f"{source} has {what} ({key}), which this image encoder does not have. Take another ({instead}).")


def _folded(state: State) -> State:
    """LayerScale multiplied into the projections before it, which computes the same."""
    folded = dict(state)
    for key, scale in state.items():
        if match := re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", key):
            name = match[1] + ("attn.proj" if match[2] == "1" else "mlp.fc2")
            folded[f"{name}.weight"] = state[f"{name}.weight"] * scale[:, None]
            if f"{name}.bias" in state:
                folded[f"{name}.bias"] = state[f"{name}.bias"] * scale
            del folded[key]
    return folded


_HUGGING_FACE = (
    (r"^(vit|dinov2)\.", ""),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    # transformers 5 writes decoder_encoder.layer where the published files have decoder_layers
    (r"^decoder\.decoder_(layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"^decoder\.(decoder_\w+|mask_token)", r"\1"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "encoder_mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^classifier\.", "head."),
)
_CLIP = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
)


def from_hugging_face(state: State) -> State:
    """Hugging Face's names of a ViT, MAE or DINOv2 as timm's; queries, keys and values in one."""
    return _renamed(state, _HUGGING_FACE)


def _from_clip(state: State) -> State:
    """The vision tower of Hugging Face's CLIP; the names of its text tower and projections stay."""
    renamed = _renamed(state, _CLIP)
    renamed["cls_token"] = renamed["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in renamed:
        renamed["pos_embed"] = renamed["pos_embed"][None]
    return renamed


def _renamed(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed: State = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    for key in [key for key in renamed if re.search(r"blocks\.\d+\.attn\.q\.(weight|bias)$", key)]:
        block, kind = key.rsplit(".q.", 1)
        names = [f"{block}.{part}.{kind}" for part in "qkv"]
        if all(name in renamed for name in names):
            renamed[f"{block}.qkv.{kind}"] = torch.cat([renamed.pop(name) for name in names])
    return renamed


def _some(state: State) -> str:
    return f"{', '.join(list(state)[:4])} ..."


# --- what the file is


def _told_by_shapes(state: State) -> dict[str, Any]:
    """Settings of the image encoder that the tensors show."""
    measures: dict[str, Callable[[], Any]] = {
        "width": lambda: state["cls_token"].shape[-1],
        "patch_size": lambda: state["patch_embed.proj.weight"].shape[-1],
        "depth": lambda: _blocks(state, "blocks"),
        "pre_norm": lambda: "norm_pre.weight" in state,
    }
    if "decoder_embed.weight" in state:
        measures["decoder_width"] = lambda: state["decoder_embed.weight"].shape[0]
        measures["decoder_depth"] = lambda: _blocks(state, "decoder_blocks")
    told = {}
    for name, measure in measures.items():
        try:
            told[name] = measure()
        except (KeyError, IndexError):  # `load` names what is missing
            continue
    return told


def _blocks(state: State, name: str) -> int:
    return len({match[1] for key in state if (match := re.match(rf"{name}\.(\d+)\.", key))})


def _described(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings that a config.json of Hugging Face or timm tells; {} where there is none."""
    if "architecture" in described:
        return _described_by_timm(described, source)
    kind = described.get("model_type")
    if kind is None:
        return {}
    if kind not in _KINDS:
        raise M2I2Error(
            f"{source} is a model of the kind {shown(kind)}; start.image takes {', '.join(_KINDS)}, timm's plain ViTs and "
            f"open_clip's towers of timm."
        )
    activation, eps = _KINDS[kind]
    own = described.get("vision_config", {}) if kind == "clip" else described
    own = own if isinstance(own, Mapping) else {}
    told = {
        "heads": own.get("num_attention_heads", 12),
        "activation": own.get("hidden_act", activation),
        "layer_norm_eps": own.get("layer_norm_eps", eps),
    }
    return {**told, "decoder_heads": own.get("decoder_num_attention_heads", 16)} if kind == "vit_mae" else told


def _described_by_timm(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    import timm

    name, arguments = described["architecture"], described.get("model_args") or {}
    if not isinstance(name, str) or not timm.is_model(name) or not isinstance(arguments, Mapping):
        raise M2I2Error(f"{source} names the architecture {shown(name)}, which the installed timm does not have.")
    with torch.device("meta"):
        return _of_timm(timm.create_model(name, num_classes=0, **arguments), source)


def _of_timm(model: Any, source: str) -> dict[str, Any]:
    """Settings of a model of timm that no tensor shows."""
    try:
        block = model.blocks[0]
        activation = type(block.mlp.act).__name__
        names = {"GELU": "gelu", "QuickGELU": "quick_gelu"}
        return {"heads": block.attn.num_heads, "activation": names.get(activation, activation), "layer_norm_eps": block.norm1.eps}
    except (AttributeError, TypeError, IndexError) as e:
        raise M2I2Error(f"{source} is a {type(model).__name__} of timm, not a plain ViT; name another start.image.") from e


def _from_timm(name: str) -> tuple[State, dict[str, Any]]:
    import timm

    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as e:
        raise M2I2Error(
            f"timm cannot give the weights of {name!r} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}). "
            f"Without a connection, fetch them elsewhere (hf download timm/{name} --local-dir weights/{name}) and name that "
            f"folder: start.image=weights/{name}."
        ) from e
    return dict(model.state_dict()), _of_timm(model, f"timm:{name}")


def _require_same_model(config: VisionConfig, told: Mapping[str, Any], source: str) -> None:
    """M2I2Error, with the settings to give, where the file is another model than ``config`` describes."""
    if (activation := told.get("activation", "gelu")) not in ("gelu", "quick_gelu"):
        raise M2I2Error(f"{source} computes with the activation {shown(activation)}; the image encoder has gelu and quick_gelu.")
    differs = {name: value for name, value in told.items() if not _alike(name, getattr(config, name), value)}
    if not differs:
        return
    listed = "; ".join(f"vision.{name} is {shown(value)} there, {getattr(config, name)} here" for name, value in differs.items())
    words = " ".join(f"vision.{name}={shown(value).lower()}" for name, value in differs.items()).replace("'", "")
    raise M2I2Error(f"{source} is another model than the settings describe: {listed}. Give {words}, or name another start.image.")


def _alike(name: str, own: Any, theirs: Any) -> bool:
    if name == "layer_norm_eps" and isinstance(theirs, int | float):
        return max(own, _SMALLEST_EPS) == max(theirs, _SMALLEST_EPS)
    return bool(own == theirs)


def _fit_positions(state: State, encoder: VisionTransformer) -> None:
    """Positions of another resolution on the encoder's grid: MAE's computed, others interpolated."""
    own = encoder.state_dict()
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in state and state[name].dim() == 3 and 1 < state[name].shape[1] != own[name].shape[1]:
            if "decoder_pred.weight" in state:  # MAE: sin-cos on both grids, ours is exact
                state[name] = own[name]
            else:
                state[name] = resize_positions(state[name].float(), encoder.config.patches)
