"""The ViT of an ONNX graph whose matrices are anonymous comes out under timm's names, and starts our image encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from m2i2.cli.fetch_vit import vit_state
from m2i2.errors import M2I2Error
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start_image import start_image
from m2i2.presets import preset

WIDTH, DEPTH, PATCH, PATCHES = 128, 4, 8, 9


def graph_of(layers: int, positions: bool = True) -> onnx.GraphProto:
    """What an exporter makes of a DINOv2: biases and norms by name, matrices transposed and named by their node alone."""
    rng = np.random.default_rng(0)
    initial: dict[str, np.ndarray] = {}
    nodes = []

    def new(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    base = "backbone.embeddings."
    initial[f"{base}cls_token"] = new(1, 1, WIDTH)
    initial[f"{base}patch_embeddings.projection.weight"] = new(WIDTH, 3, PATCH, PATCH)
    initial[f"{base}patch_embeddings.projection.bias"] = new(WIDTH)
    if positions:
        initial |= {"onnx::Concat_1": new(1, 1, WIDTH), "onnx::Reshape_2": new(1, PATCHES, WIDTH)}
        nodes.append(helper.make_node("Reshape", ["onnx::Reshape_2", "s"], ["p"], name="/backbone/embeddings/Reshape_1"))
        nodes.append(helper.make_node("Concat", ["onnx::Concat_1", "p"], ["q"], name="/backbone/embeddings/Concat_4", axis=1))
    for layer in range(layers):
        prefix = f"backbone.encoder.layer.{layer}."
        linear = {f"attention.attention.{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")}
        linear |= {"attention.output.dense": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, (out, into) in linear.items():
            initial[f"{prefix}{name}.bias"] = new(out)
            anonymous = f"onnx::MatMul_{len(initial)}"
            initial[anonymous] = new(into, out)
            path = f"/backbone/encoder/layer.{layer}/{name.replace('.', '/')}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", anonymous], ["y"], name=path))
        path = f"/backbone/encoder/layer.{layer}/attention/attention/MatMul"  # queries by keys: no weights
        nodes.append(helper.make_node("MatMul", ["q", "k"], ["scores"], name=path))
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1"):
            initial[f"{prefix}{name}"] = new(WIDTH)
    initial |= {"backbone.layernorm.weight": new(WIDTH), "backbone.layernorm.bias": new(WIDTH), "decoder.bn1.bias": new(7)}
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "vit", [], [out], [numpy_helper.from_array(a, n) for n, a in initial.items()])


def test_every_tensor_starts_the_image_encoder(tmp_path: Path) -> None:
    graph = graph_of(DEPTH)
    state = vit_state(graph)
    assert len(state) == 14 * DEPTH + 6
    assert state["pos_embed"].shape == (1, 1 + PATCHES, WIDTH)
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "model.safetensors")
    config = preset("tiny")[0]
    assert (config.vision.width, config.vision.depth, config.vision.patch_size) == (WIDTH, DEPTH, PATCH)
    model = PretrainingModel(replace(config.vision, image_size=48), config.text, config.objectives)
    assert "loaded" in start_image(model, str(tmp_path))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {node.name: arrays[node.input[1]] for node in graph.node if node.input[1] in arrays}
    block = model.visual_encoder.blocks[1]
    path = "/backbone/encoder/layer.1/"
    query = weights[f"{path}attention/attention/query/MatMul"]
    np.testing.assert_array_equal(block.attn.qkv.weight.detach()[:WIDTH], query.T)
    scale = arrays["backbone.encoder.layer.1.layer_scale2.lambda1"]
    expected = torch.from_numpy(weights[f"{path}mlp/fc2/MatMul"].T * scale[:, None])
    torch.testing.assert_close(block.mlp.fc2.weight.detach(), expected)


def test_another_graph_is_refused() -> None:
    with pytest.raises(M2I2Error, match="no position embeddings"):
        vit_state(graph_of(1, positions=False))
