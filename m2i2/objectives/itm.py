"""Image-text matching: does this caption belong to this image, asked of true pairs and of hard negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.precision import full


@torch.no_grad()
def draw_negatives(similarity: Tensor, forbidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One negative for each row, drawn with probability softmax(similarity) among the columns that are allowed.

    ``similarity``, Gumbel ``noise``: [b, B]; ``forbidden``: [b, B] boolean. Returns columns [b] and whether each row had
    one to draw from [b]. The largest of log-probability plus noise is an exact draw, and exists whatever the numbers.
    """
    scores = torch.nan_to_num(full(similarity), nan=0.0, posinf=1e4, neginf=-1e4) + noise
    return scores.masked_fill(forbidden, -torch.inf).argmax(dim=1), ~forbidden.all(dim=1)


def itm_loss(logits: Tensor, image_there: Tensor, text_there: Tensor, mean_rows: Tensor) -> Tensor:
    """Cross-entropy of 3b rows: true pairs, then a negative image for each text, then a negative text for each image.

    ``logits``: [3b, 2]; ``image_there``, ``text_there``: [b] whether that negative exists. ``mean_rows``: rows of a rank that
    count, the mean over the ranks: dividing by it makes the ranks' average the mean over all rows.
    """
    present = rows_present(image_there, text_there)
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(image_there)] = 1
    losses = F.cross_entropy(full(logits), labels, reduction="none") * present
    return losses.sum() / mean_rows.to(losses.dtype)


def rows_present(image_there: Tensor, text_there: Tensor) -> Tensor:
    """[3b] bool, which rows of the matching exist: every true pair, and the negatives that there are."""
    return torch.cat([torch.ones_like(image_there), image_there, text_there])
