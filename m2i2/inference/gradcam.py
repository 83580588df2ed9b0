"""Grad-CAM over cross-attention: which patches of the image an answer rests on (as ALBEF's, and the paper's figure).

The map of a multimodal layer is its cross-attention times the gradient of the answer's log-likelihood with respect to
that attention, clamped at 0 and averaged over heads. Fused attention kernels keep no attention weights, so they are computed
openly here, in this pass only; its outputs are those of the normal pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.errors import M2I2Error
from m2i2.models.text import KeysValues, TextModel, padding_mask
from m2i2.models.vqa import VQAModel
from m2i2.precision import full


@dataclass(frozen=True)
class Cam:
    """What one answer to one question about one image rests on."""

    maps: Tensor
    """[L, side, side] float32, not negative, summing to 1 over all (or 0 where no patch speaks for the answer): a map over the
    patches for each token of the question, [CLS] and [SEP] too."""
    token_scores: Tensor
    """[A - 1] log-probabilities of the answer's tokens after [CLS], the closing [SEP] included."""

    @property
    def map(self) -> Tensor:
        """[side, side]: the sum over the question's tokens."""
        return self.maps.sum(0)


def gradcam(
    model: VQAModel, image: Tensor, question_ids: Tensor, answer_ids: Tensor, layer: int | None = None, token: int | None = None
) -> Cam:
    """The map of ``answer_ids`` [1, A] ([CLS] answer [SEP]) to ``question_ids`` [1, L] about ``image`` [1, 3, H, W], normalised.

    ``layer``: which multimodal layer is explained, from 0; default: the mean of all of them, each weighing the same.
    ``token``: explain only this token of the answer, from 0; default: the whole answer. The model must be in evaluation
    mode; it is not changed, so that several threads may share it. M2I2Error for a layer or token that is not there.
    """
    depth = model.text.depth - model.text.fusion_layer
    if layer is not None and not 0 <= layer < depth:
        raise M2I2Error(f"There is no multimodal layer {layer}; the model has {depth}, counted from 0 to {depth - 1}.")
    tokens = answer_ids.shape[1] - 1
    if token is not None and not 0 <= token < tokens:
        raise M2I2Error(f"The answer has no token {token}; it has {tokens}, counted from 0, the closing [SEP] included.")
    assert not model.training
    mask = torch.ones_like(question_ids)
    with torch.no_grad():
        keys_values = model.encode_image(image)
        text = model.text_encoder.encode(question_ids, mask)
    with torch.enable_grad():
        states, attentions = fuse_openly(model.text_encoder, text, mask, keys_values)
        decoded = model.text_decoder(answer_ids[:, :-1], states, mask)
        log_probabilities = F.log_softmax(full(model.text_decoder.logits(decoded)), dim=-1)
        scores = log_probabilities[0].gather(1, answer_ids[0, 1:, None]).squeeze(1)
        score = scores.sum() if token is None else scores[token]
        chosen = attentions if layer is None else [attentions[layer]]
        gradients = torch.autograd.grad(score, chosen)
    side = model.vision.image_size // model.vision.patch_size
    maps = torch.zeros(question_ids.shape[1], side, side, device=image.device)
    for attention, gradient in zip(chosen, gradients, strict=True):
        weighted = (attention.detach() * gradient.clamp_min(0))[0].float().mean(0)[:, 1:]  # without the image's [CLS]
        maps += _sum_to_one(weighted).unflatten(1, (side, side)) / len(chosen)
    return Cam(maps, scores.detach())


def fuse_openly(text: TextModel, x: Tensor, mask: Tensor, keys_values: list[KeysValues]) -> tuple[Tensor, list[Tensor]]:
    """`TextModel.fuse` of texts [B, L, D] with one image each, its cross-attention computed openly.

    Returns the states [B, L, D] and each multimodal layer's cross-attention [B, H, L, N], within the states' graph.
    """
    attentions = []
    for layer, (keys, values) in zip(text.encoder.layers(text.config.fusion_layer), keys_values, strict=True):
        x = layer.attention(x, None, padding_mask(mask))
        attention = layer.crossattention.self.probabilities(x, keys)
        if not attention.requires_grad:  # nothing before it is trainable
            attention.requires_grad_()
        x = layer.crossattention.output((attention @ values).transpose(1, 2).flatten(2), x)
        x = layer.feed_forward(x)
        attentions.append(attention)
    return x, attentions


def _sum_to_one(x: Tensor) -> Tensor:
    """``x`` over its sum; zeros stay zeros."""
    return x / x.sum().clamp_min(torch.finfo(x.dtype).tiny)
