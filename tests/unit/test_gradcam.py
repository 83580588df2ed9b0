"""Grad-CAM computes attention openly, with the normal pass's outputs, and leaves the model as it was."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from m2i2.config import TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.inference.gradcam import fuse_openly, gradcam
from m2i2.inference.localisation import localise
from m2i2.inference.overlay import MOST, TICKS, overlay, scale_bar, scaled, with_legend
from m2i2.models.text import ImageRows
from m2i2.models.vqa import VQAModel
from tests.parity.fixture import fitting, largest_difference, sizes, tensors

QUESTION, ANSWER = torch.tensor([[2, 7, 9, 3]]), torch.tensor([[2, 11, 12, 3]])


@pytest.fixture
def model() -> VQAModel:
    torch.manual_seed(0)
    vision = VisionConfig(image_size=32, patch_size=16, width=32, depth=1, heads=4)
    text = TextConfig(vocabulary_size=20, width=32, depth=5, fusion_layer=2, heads=2, intermediate=64, initializer_range=0.3)
    return VQAModel(vision, replace(text, decoder_depth=2)).double().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_open_pass_is_the_normal_pass(parity_folder: Path) -> None:
    told = sizes(parity_folder)
    text_config = told.text
    model = VQAModel(replace(told.vision, image_size=told.answering_side), text_config).double().eval()
    model.load_state_dict(dict(fitting(model, tensors(parity_folder, "vqa_state_dict"))))
    inputs = tensors(parity_folder, "vqa_inputs")
    ids, mask = inputs["question_ids"], inputs["question_mask"]
    with torch.no_grad():
        keys_values = model.encode_image(inputs["image"])
        text = model.text_encoder.encode(ids, mask)
        normal = model.text_encoder.fuse(text, mask, [ImageRows(keys_values, 1)])
        opened, attentions = fuse_openly(model.text_encoder, text, mask, keys_values)
    assert largest_difference(opened, normal) < 1e-12
    assert len(attentions) == text_config.depth - text_config.fusion_layer
    assert all(largest_difference(a.sum(-1), torch.ones_like(a[..., 0])) < 1e-12 for a in attentions)


def test_the_map_is_the_attention_times_its_effect_on_the_answer(model: VQAModel, image: Tensor) -> None:
    """The gradient is checked by moving one weight of the attention a little: the answer's likelihood follows."""
    mask = torch.ones_like(QUESTION)

    def likelihood(layer: int, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            keys_values = model.encode_image(image)
            x = model.text_encoder.encode(QUESTION, mask)
            for number, part in enumerate(model.text_encoder.encoder.layers(2)):
                x = part.attention(x, None, mask.bool()[:, None, None])
                weights = part.crossattention.self.probabilities(x, keys_values[number][0])
                if number == layer:
                    chosen = weights if change is None else weights + change
                    weights = chosen
                x = part.crossattention.output((weights @ keys_values[number][1]).transpose(1, 2).flatten(2), x)
                x = part.feed_forward(x)
            logits = model.text_decoder.logits(model.text_decoder(ANSWER[:, :-1], x, mask))
            return logits.log_softmax(-1)[0].gather(1, ANSWER[0, 1:, None]).sum(), chosen

    for layer in range(3):
        before, weights = likelihood(layer)
        expected = torch.zeros(weights.shape[2:], dtype=torch.float64)
        for head in range(weights.shape[1]):
            for row in range(weights.shape[2]):
                for column in range(weights.shape[3]):
                    change = torch.zeros_like(weights)
                    change[0, head, row, column] = 1e-6
                    slope = (likelihood(layer, change)[0] - before) / 1e-6
                    expected[row, column] += weights[0, head, row, column] * slope.clamp_min(0)
        expected = expected[:, 1:] / expected[:, 1:].sum()
        cam = gradcam(model, image, QUESTION, ANSWER, layer)
        assert largest_difference(cam.maps.flatten(1).double(), expected) < 1e-5
        assert float(cam.token_scores.sum()) == pytest.approx(float(before), abs=1e-9)


def test_all_layers_weigh_the_same_and_tokens_differ(model: VQAModel, image: Tensor) -> None:
    everything = gradcam(model, image, QUESTION, ANSWER)
    single = torch.stack([gradcam(model, image, QUESTION, ANSWER, layer).maps for layer in range(3)])
    assert largest_difference(everything.maps, single.mean(0)) < 1e-6
    assert float(everything.map.sum()) == pytest.approx(1, abs=1e-5)
    tokens = [gradcam(model, image, QUESTION, ANSWER, token=token).map for token in range(3)]
    assert largest_difference(tokens[0], tokens[1]) > 1e-3 < largest_difference(tokens[1], tokens[2])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_stays_as_it_was_and_threads_may_share_it(model: VQAModel, image: Tensor, frozen: bool) -> None:
    model.requires_grad_(not frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = gradcam(model, image, QUESTION, ANSWER).maps
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(gradcam(model, image, QUESTION, ANSWER).maps)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(largest_difference(maps, expected) < 1e-6 for maps in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_layers_and_tokens_that_are_not_there(model: VQAModel, image: Tensor) -> None:
    with pytest.raises(M2I2Error, match="no multimodal layer 3; the model has 3"):
        gradcam(model, image, QUESTION, ANSWER, layer=3)
    with pytest.raises(M2I2Error, match="no token 3; it has 3"):
        gradcam(model, image, QUESTION, ANSWER, token=3)


def test_localisation_counts_the_covered_share_of_a_patch() -> None:
    cam, mask = torch.zeros(4, 4), np.zeros((64, 64), dtype=bool)
    mask[:16, :8] = True  # half of the first patch
    cam[0, 0], cam[3, 3] = 3, 1
    found = localise(cam, mask)
    assert (found.mass, found.chance, found.hit) == (3 / 4 / 2, 1 / 32, True)
    assert found.gain == pytest.approx(12)
    assert localise(torch.ones(4, 4), mask).gain == pytest.approx(1)
    assert localise(torch.zeros(4, 4), mask).mass == 0


def test_an_overlay_warms_where_the_map_is_hot_and_nowhere_else() -> None:
    cam = torch.zeros(8, 8)
    cam[1, 6] = 0.2
    made = np.asarray(overlay(Image.new("RGB", (160, 80), (40, 40, 40)), cam), dtype=int)
    assert made.shape == (80, 160, 3)
    assert np.unravel_index(made[..., 0].argmax(), (80, 160)) in [(y, x) for y in range(10, 20) for x in range(120, 140)]
    assert (made[40:, :80] == 40).all()
    blank = np.asarray(overlay(Image.new("RGB", (16, 16), (40, 40, 40)), torch.zeros(8, 8)))
    assert (blank == 40).all()


def test_one_scale_tells_how_much_weight_a_place_has_relative_to_the_mean() -> None:
    """Whatever the sum of the map; evenly spaced doublings from the mean to the hottest."""
    rest = torch.full((8, 8), (64 - sum(TICKS)) / (64 - len(TICKS)))
    rest[0, : len(TICKS)] = torch.tensor(TICKS, dtype=torch.float32)
    for cam in (rest, rest / 64, (100 * rest).numpy()):
        assert scaled(cam)[0, : len(TICKS)].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-6)
    assert (scaled(rest)[1:] == 0).all()
    peak = torch.zeros(8, 8)
    peak[0, 0] = 1
    assert scaled(peak)[0, 0] == 1 and MOST < 64
    bar = np.asarray(scale_bar(101, 3), dtype=int)
    assert bar.shape == (3, 101, 3) and bar[0, 0].tolist() == [110, 110, 110]
    hottest = np.asarray(overlay(Image.new("RGB", (8, 8), (110, 110, 110)), peak), dtype=int)[0, 0]
    assert bar[0, -1].tolist() == hottest.tolist()


def test_a_legend_stands_below_the_picture_and_covers_nothing() -> None:
    picture = Image.effect_noise((400, 300), 60).convert("RGB")
    made = with_legend(picture)
    assert made.size[0] == 400 and made.size[1] > 300
    assert made.crop((0, 0, 400, 300)).tobytes() == picture.tobytes()
    below = np.asarray(made.crop((0, 300, 400, made.size[1])), dtype=int)
    assert (below.min(-1) < 60).any() and (abs(below[..., 0] - below[..., 2]) > 60).any(), "words and colours"
    assert with_legend(Image.new("RGB", (64, 64))).size[0] == 320, "wide enough for its words"
