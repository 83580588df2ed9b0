"""Image-text matching: does this caption belong to this image, asked of true pairs and of hard negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.distributed import mean_over_ranks
from m2i2.objectives import full


@torch.no_grad()
def draw_negatives(similarity: Tensor, forbidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One negative for each row, drawn with probability softmax(similarity) among the columns that are allowed.

    ``similarity``, Gumbel ``noise``: [b, B]; ``forbidden``: [b, B] boolean. Returns columns [b] and whether each row had
    one to draw from [b]. The largest of log-probability plus noise is an exact draw, and exists whatever the numbers.
    """
    scores = torch.nan_to_num(full(similarity), nan=0.0, posinf=1e4, neginf=-1e4) + noise
    return scores.masked_fill(forbidden, -torch.inf).argmax(dim=1), ~forbidden.all(dim=1)


def itm_loss(logits: Tensor, rows: int, image_negative: Tensor, text_negative: Tensor) -> Tensor:
    """Cross-entropy of 3b rows: true pairs, then a negative image for each text, then a negative text for each image.

    ``logits``: [3 * rows, 2]; ``image_negative``, ``text_negative``: [rows] whether that negative exists; the mean is
    over the rows of all ranks that do.
    """
    labels = torch.zeros(3 * rows, dtype=torch.long, device=logits.device)
    labels[:rows] = 1
    present = torch.cat([torch.ones_like(image_negative), image_negative, text_negative])
    losses = F.cross_entropy(full(logits), labels, reduction="none") * present
    return losses.sum() / mean_over_ranks(present.sum().to(losses.dtype))
