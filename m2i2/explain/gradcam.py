"""Grad-CAM over cross-attention: which patches of the image an answer rests on (as ALBEF's, and the paper's figure).

The map of a multimodal layer is its cross-attention times the gradient of the answer's log-likelihood with respect to
that attention, clamped at 0 and averaged over heads. Fused attention kernels keep no attention weights, so the explained
layer computes them openly here, in this pass only; its outputs are those of the normal pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.errors import M2I2Error
from m2i2.models.text import KeysValues, TextModel, padding_mask
from m2i2.models.vqa import VQAModel
from m2i2.objectives import full


@dataclass(frozen=True)
class Cam:
    """What one answer to one question about one image rests on."""

    maps: Tensor
    """[L, side, side] float32, not negative: a map over the patches for each token of the question, [CLS] and [SEP] too."""
    token_scores: Tensor
    """[A - 1] log-probabilities of the answer's tokens after [CLS], the closing [SEP] included."""

    @property
    def map(self) -> Tensor:
        """[side, side], summing to 1 (or all 0): the mean over the question's tokens."""
        together = self.maps.mean(0)
        return together / together.sum().clamp_min(torch.finfo(together.dtype).tiny)


def default_layer(model: VQAModel) -> int:
    """The multimodal layer in the middle: the third of six, ALBEF's choice."""
    return (model.text.depth - model.text.fusion_layer - 1) // 2


def gradcam(
    model: VQAModel, image: Tensor, question_ids: Tensor, answer_ids: Tensor, layer: int | None = None, token: int | None = None
) -> Cam:
    """The map of ``answer_ids`` [1, A] ([CLS] answer [SEP]) to ``question_ids`` [1, L] about ``image`` [1, 3, H, W], normalised.

    ``layer``: which multimodal layer is explained, from 0 (default: `default_layer`). ``token``: explain only this token of
    the answer, from 0; default: the whole answer. The model must be in evaluation mode; it is not changed, so that several
    threads may share it. M2I2Error for a layer or token that is not there.
    """
    layers = model.text.depth - model.text.fusion_layer
    layer = default_layer(model) if layer is None else layer
    if not 0 <= layer < layers:
        raise M2I2Error(f"There is no multimodal layer {layer}; the model has {layers}, counted from 0 to {layers - 1}.")
    tokens = answer_ids.shape[1] - 1
    if token is not None and not 0 <= token < tokens:
        raise M2I2Error(f"The answer has no token {token}; it has {tokens}, counted from 0, the closing [SEP] included.")
    assert not model.training
    mask = torch.ones_like(question_ids)
    with torch.no_grad():
        keys_values = model.encode_image(image)
        text = model.text_encoder.encode(question_ids, mask)
    with torch.enable_grad():
        states, attention = fuse_openly(model.text_encoder, text, mask, keys_values, layer)
        decoded = model.text_decoder(answer_ids[:, :-1], states, mask)
        log_probabilities = F.log_softmax(full(model.text_decoder.logits(decoded)), dim=-1)
        scores = log_probabilities[0].gather(1, answer_ids[0, 1:, None]).squeeze(1)
        score = scores.sum() if token is None else scores[token]
        (gradient,) = torch.autograd.grad(score, attention)
    weighted = (attention.detach() * gradient.clamp_min(0))[0].float().mean(0)[:, 1:]  # without the image's [CLS]
    side = model.vision.image_size // model.vision.patch_size
    return Cam(weighted.unflatten(1, (side, side)), scores.detach())


def fuse_openly(text: TextModel, x: Tensor, mask: Tensor, keys_values: list[KeysValues], layer: int) -> tuple[Tensor, Tensor]:
    """`TextModel.fuse` of texts [B, L, D] with one image each, the cross-attention of ``layer`` computed openly.

    Returns the states [B, L, D] and that attention [B, H, L, N], a leaf that gradients of the states reach.
    """
    attention = x.new_empty(0)
    for number, part in enumerate(text.encoder.layers(text.config.fusion_layer)):
        if number != layer:
            x = text.fuse_layer(part, x, padding_mask(mask), [(keys_values[number], 1)])
            continue
        x = part.attention(x, None, padding_mask(mask))
        keys, values = keys_values[number]
        attention = part.crossattention.self.probabilities(x, keys).detach().requires_grad_()
        x = part.crossattention.output((attention @ values).transpose(1, 2).flatten(2), x)
        x = part.feed_forward(x)
    return x, attention
