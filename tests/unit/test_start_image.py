"""ViTs, MAE, DINOv2 and CLIP as their libraries write them start the image encoder, which then computes what they compute."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start_image import start_image

VISION = VisionConfig(image_size=48, patch_size=16, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
TEXT = TextConfig(vocabulary_size=20, width=8, depth=2, fusion_layer=1, heads=2, intermediate=8, positions=8)
SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 48},
    "patch_size": 16,
}
Expected = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] -> what the encoder's states [B, N, D] have to be."""


def ours(vision: VisionConfig) -> PretrainingModel:
    torch.manual_seed(1)
    return PretrainingModel(vision, TEXT, ObjectivesConfig(projection=8, queue=4)).eval()


def lively(theirs: nn.Module) -> Any:
    """The model with weights of which none is zero, one or small."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            shift = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(shift + 0.3 * torch.randn_like(parameter))
    return theirs.eval()


def hugging_face(folder: Path, name: str, **changes: Any) -> Any:
    import transformers

    kind = "CLIPVision" if name.startswith("CLIPVision") else name.partition("Model")[0].partition("For")[0]
    theirs = lively(getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})))
    theirs.save_pretrained(folder)
    return theirs


def vit(folder: Path) -> Expected:
    theirs = hugging_face(folder, "ViTModel")
    return lambda image: theirs(image, interpolate_pos_encoding=True).last_hidden_state


def vit_with_a_head(folder: Path) -> Expected:
    theirs = hugging_face(folder, "ViTForImageClassification")
    return lambda image: theirs.vit(image, interpolate_pos_encoding=True).last_hidden_state


def dinov2(folder: Path) -> Expected:
    theirs = hugging_face(folder, "Dinov2Model")
    return lambda image: theirs(image).last_hidden_state


def dinov2_by_its_own_names(folder: Path) -> Expected:
    """The names of the published file, which transformers 5 has renamed in its classes."""
    from safetensors.torch import load_file, save_file

    expected = dinov2(folder)
    renamed = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
            key = key.replace(f".attention.{new}.", f".attention.{old}.")
        renamed[key.replace(".attention.o_proj.", ".attention.output.dense.")] = tensor
    save_file(renamed, folder / "model.safetensors")
    return expected


def clip_vision(folder: Path) -> Expected:
    theirs = hugging_face(folder, "CLIPVisionModel")
    return lambda image: theirs.post_layernorm(theirs(image, interpolate_pos_encoding=True).last_hidden_state)


def clip_whole(folder: Path) -> Expected:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    theirs = lively(CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=8)))
    theirs.save_pretrained(folder)
    tower = theirs.vision_model
    return lambda image: tower.post_layernorm(tower(image, interpolate_pos_encoding=True).last_hidden_state)


def of_timm(**changes: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 48, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return lively(VisionTransformer(**{**sizes, **changes}))


def timm_plain(folder: Path) -> Expected:
    theirs = of_timm()
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return theirs.forward_features


def timm_layer_scale(folder: Path) -> Expected:
    theirs = of_timm(init_values=0.3)
    torch.save({"model": {**theirs.state_dict(), "mask_token": torch.zeros(1, 16)}}, folder / "weights.pth")  # as DINOv2's own
    return theirs.forward_features


def timm_clip(folder: Path) -> Expected:
    theirs = of_timm(pre_norm=True, norm_layer=nn.LayerNorm, act_layer="quick_gelu")
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return theirs.forward_features


def biomed_clip(folder: Path) -> Expected:
    """As open_clip writes BiomedCLIP: timm's ViT behind visual.trunk, a BERT behind text.transformer."""
    from transformers import BertConfig, BertModel

    theirs = of_timm(num_classes=0)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20))
    state = {f"visual.trunk.{key}": tensor for key, tensor in theirs.state_dict().items()}
    state |= {f"text.transformer.{key}": tensor for key, tensor in bert.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(8, 16), "text.proj.0.weight": torch.zeros(8, 8), "logit_scale": torch.ones(())}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text("{}")
    return theirs.forward_features


CLIP = {"pre_norm": True, "activation": "quick_gelu", "layer_norm_eps": 1e-5}
KINDS: list[tuple[Callable[[Path], Expected], dict[str, Any], tuple[str, ...]]] = [
    (vit, {}, ("pooler",)),
    (vit_with_a_head, {}, ("classification head",)),
    (dinov2, {}, ("mask token",)),
    (dinov2_by_its_own_names, {}, ("mask token",)),
    (clip_vision, CLIP, ("patch_embed.proj.bias zero",)),
    (clip_whole, CLIP, ("text tower", "the contrast's projections")),
    (timm_plain, {}, ("the file does not tell them", "classification head")),
    (timm_layer_scale, {}, ("mask token",)),
    (timm_clip, CLIP, ("patch_embed.proj.bias zero",)),
    (biomed_clip, {}, ("text tower", "the contrast's projections")),
]


@pytest.mark.parametrize(("write", "settings", "said"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_states_are_those_of_the_library(
    tmp_path: Path, write: Callable[[Path], Expected], settings: dict[str, Any], said: tuple[str, ...]
) -> None:
    expected = write(tmp_path)
    (file,) = [*tmp_path.glob("*.pth")] or [tmp_path]
    vision = replace(VISION, **settings)
    model = ours(vision)
    report = start_image(model, str(file))
    assert "20 fresh" in report and "the file has no pixel decoder" in report
    for words in said:
        assert words in report
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.visual_encoder(image).states, expected(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("write", [vit, dinov2, clip_vision])
def test_positions_of_another_resolution_are_interpolated_as_the_library_does(
    tmp_path: Path, write: Callable[[Path], Expected]
) -> None:
    expected = write(tmp_path)
    model = ours(replace(VISION, image_size=80, **(CLIP if write is clip_vision else {})))
    start_image(model, str(tmp_path))
    image = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(model.visual_encoder(image).states, expected(image), atol=1e-4, rtol=1e-4)


def test_patches_of_14(tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path, "Dinov2Model", patch_size=14, image_size=42)
    model = ours(replace(VISION, patch_size=14, image_size=28))
    start_image(model, str(tmp_path))
    image = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model.visual_encoder(image).states, theirs(image).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_a_mae_brings_its_pixel_decoder(tmp_path: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(3)
    model = ours(replace(VISION, patch_size=8, image_size=32))
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=0.25,
        layer_norm_eps=1e-6,
    )
    theirs = ViTMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    report = start_image(model, str(tmp_path))
    assert "fresh" not in report
    image, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        out = theirs(image, noise=noise)
        seen = model.visual_encoder(image, noise, 0.25)
        encoded = theirs.vit(image, noise=noise).last_hidden_state
        torch.testing.assert_close(seen.states, encoded, atol=1e-5, rtol=0)
        masked = seen.order[:, 12:]
        wanted = out.logits.gather(1, masked.unsqueeze(-1).expand(-1, -1, out.logits.shape[-1]))
        torch.testing.assert_close(model.visual_encoder.reconstruct(seen), wanted, atol=1e-4, rtol=0)


def test_a_folder_of_timm_names_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm writes for the hub; the model itself is made without memory."""
    from timm.models import create_model
    from timm.models.vision_transformer import VisionTransformer

    made = []
    monkeypatch.setattr("timm.create_model", lambda name, **given: made.append(create_model(name, **given)) or made[-1])
    arguments = {"img_size": 48, "embed_dim": 16, "depth": 2, "num_heads": 4}
    theirs = create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **arguments)
    assert isinstance(theirs, VisionTransformer)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architecture": "vit_base_patch16_clip_quickgelu_224", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(M2I2Error, match=r"Give vision\.pre_norm=true vision\.heads=4 vision\.activation=quick_gelu vision"):
        start_image(ours(VISION), str(tmp_path))
    assert made[0].norm.weight.is_meta
    assert "tensors loaded" in start_image(ours(replace(VISION, heads=4, **CLIP)), str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(M2I2Error, match="ResNet of timm, not a plain ViT"):
        start_image(ours(VISION), str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "hf-hub:somebody/something"}))
    with pytest.raises(M2I2Error, match="which the installed timm does not have"):
        start_image(ours(VISION), str(tmp_path))


def test_another_model_is_refused_with_its_settings(tmp_path: Path) -> None:
    hugging_face(tmp_path, "Dinov2Model", hidden_size=24, num_attention_heads=3, num_hidden_layers=1, patch_size=14, image_size=42)
    with pytest.raises(M2I2Error, match=r"vision\.width is 24 there, 16 here") as caught:
        start_image(ours(VISION), str(tmp_path))
    assert "Give vision.width=24 vision.patch_size=14 vision.depth=1 vision.heads=3, or name another start.image." in str(
        caught.value
    )


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ViTModel", {"num_attention_heads": 4}, r"vision\.heads is 4 there, 2 here"),
    ("ViTModel", {"hidden_act": "silu"}, "computes with the activation 'silu'; the image encoder has gelu and quick_gelu"),
    ("ViTModel", {"layer_norm_eps": 1e-3}, r"Give vision\.layer_norm_eps=0\.001"),
    ("ViTModel", {"intermediate_size": 32}, r"blocks\.0\.mlp\.fc1\.weight is \(32, 16\) there, \(64, 16\) in the model"),
    ("CLIPVisionModel", {}, "vision.pre_norm=true vision.activation=quick_gelu vision.layer_norm_eps=1e-05"),
    ("Dinov2WithRegistersModel", {}, r"register tokens \(embeddings\.register_tokens\).*Take another \(facebook/dinov2-small"),
    ("Dinov2Model", {"use_swiglu_ffn": True}, r"has SwiGLU layers \(encoder\.layer\.0\.mlp\.weights_in"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_computes_something_else_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    hugging_face(tmp_path, name, **changes)
    with pytest.raises(M2I2Error, match=message):
        start_image(ours(VISION), str(tmp_path))


@pytest.mark.parametrize("names", ["timm", "facebook"])
def test_register_tokens_are_refused_by_name(tmp_path: Path, names: str) -> None:
    state = of_timm(reg_tokens=4).state_dict()
    if names == "facebook":
        state["register_tokens"] = state.pop("reg_token")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(M2I2Error, match=r"has register tokens \(reg"):
        start_image(ours(VISION), str(tmp_path / "weights.pth"))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(M2I2Error, match=r"is not a ViT, MAE, DINOv2 or CLIP .* \(layers\.0\.weight"):
        start_image(ours(VISION), str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(M2I2Error, match=r"a model of the kind 'swin'; start\.image takes vit, vit_mae"):
        start_image(ours(VISION), str(tmp_path))
