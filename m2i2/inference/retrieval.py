"""What retrieval compares: contrastive features of images and captions, and the matching head's judgement of single pairs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from m2i2.data.images.transforms import normalise
from m2i2.data.loading.padding import pad_rows
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import ImageRows
from m2i2.precision import autocast, full


@dataclass(frozen=True)
class EncodedPairs:
    """N images and their N captions, encoded whole."""

    image: Tensor
    """[N, projection] normalised features, float32; likewise ``text``."""
    text: Tensor
    image_states: Tensor
    """[N, patches + 1, D]"""
    text_states: Tensor
    """[N, L, D]"""
    mask: Tensor
    """[N, L] 1 for tokens."""

    @property
    def similarity(self) -> Tensor:
        """[N, N], images by captions, in [-1, 1]."""
        return self.image @ self.text.T


@torch.inference_mode()
def encode_pairs(
    model: PretrainingModel, pairs: Iterable[tuple[Tensor, list[int]]], pad_id: int, dtype: torch.dtype, batch: int = 32
) -> EncodedPairs:
    """Images [3, H, W] uint8 with their captions' tokens, ``batch`` at a time; the model is in evaluation mode."""
    device = model.temp.device
    pixels: list[Tensor] = []
    ids: list[list[int]] = []
    states, images = [], []

    def flush() -> None:
        with autocast(device, dtype):
            encoded = model.visual_encoder(normalise(torch.stack(pixels).to(device)).to(model.temp.dtype)).states
            images.append(model.image_features(encoded).float())
        states.append(encoded)
        pixels.clear()

    for image, tokens in pairs:
        pixels.append(image)
        ids.append(tokens)
        if len(pixels) == batch:
            flush()
    if pixels:
        flush()
    input_ids, mask = (tensor.to(device) for tensor in pad_rows(ids, pad_id))
    texts, text_states = [], []
    with autocast(device, dtype):
        for start in range(0, len(ids), batch):
            rows = slice(start, start + batch)
            text_states.append(model.text_encoder.bert.encode(input_ids[rows], mask[rows]))
            texts.append(model.text_features(text_states[-1]).float())
    return EncodedPairs(torch.cat(images), torch.cat(texts), torch.cat(states), torch.cat(text_states), mask)


@torch.inference_mode()
def matching_margins(model: PretrainingModel, pairs: EncodedPairs, wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, N] float32: by how much the matching head favours "they belong together", log-odds; -inf where not ``wanted`` [N, N]."""
    margins = torch.full(wanted.shape, -torch.inf, device=wanted.device)
    bert = model.text_encoder.bert
    for image, row in enumerate(wanted):
        texts = row.nonzero().squeeze(1)
        if not len(texts):
            continue
        with autocast(wanted.device, dtype):
            keys_values = bert.image_keys_values(pairs.image_states[image : image + 1])
            fused = bert.fuse(pairs.text_states[texts], pairs.mask[texts], [ImageRows(keys_values, len(texts))])
            logits = full(model.itm_head(fused[:, 0]))
        margins[image, texts] = (logits[:, 1] - logits[:, 0]).float()
    return margins


def nearest(scores: Tensor, k: int) -> Tensor:
    """[N, N] bool: the k highest scores of every row."""
    places = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)


def reranked(similarity: Tensor, margins: Tensor, k: int) -> Tensor:
    """[N, N]: each row's k nearest in the order of their ``margins``, above the others in the order of their similarity.

    As ALBEF's retrieval: the matching head's score replaces the similarity (salesforce/ALBEF, Retrieval.py).
    """
    lowest = margins[margins > -torch.inf].min()
    return torch.where(nearest(similarity, k), 2 + margins - lowest, similarity)
