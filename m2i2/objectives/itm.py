"""Image-text matching: does this caption belong to this image, asked of true pairs and of hard negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.precision import full


def itm_loss(logits: Tensor, image_there: Tensor, text_there: Tensor, mean_rows: Tensor) -> Tensor:
    """Cross-entropy of 3b rows: true pairs, then a negative image for each text, then a negative text for each image.

    ``logits``: [3b, 2]; ``image_there``, ``text_there``: [b] whether that negative exists. ``mean_rows``: rows of a rank that
    count, the mean over the ranks: dividing by it makes the ranks' average the mean over all rows.
    """
    present = rows_present(image_there, text_there)
    labels = (torch.arange(len(logits), device=logits.device) < len(image_there)).long()
    losses = F.cross_entropy(full(logits), labels, reduction="none") * present
    return losses.sum() / mean_rows.to(losses.dtype)


def rows_present(image_there: Tensor, text_there: Tensor) -> Tensor:
    """[3b] bool, which rows of the matching exist: every true pair, and the negatives that there are."""
    return torch.cat([torch.ones_like(image_there), image_there, text_there])
