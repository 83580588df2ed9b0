"""Image-text retrieval by contrastive features."""

import torch
from torch import Tensor

PLACES = (1, 5, 10)


def recalls(similarity: Tensor, right: Tensor) -> dict[str, float]:
    """Recall@1, 5 and 10 in percent, both ways, as ``image_to_text_r1`` ... ``text_to_image_r10``.

    ``similarity``: [N, N], images by texts. ``right``: [N, N] bool, which text belongs to which image; at least the
    diagonal. A query counts at k where one of its right answers is among the k best. Equal similarities count against it,
    so that features that are all the same find nothing.
    """
    found: dict[str, float] = {}
    for name, scores, truth in (("image_to_text", similarity, right), ("text_to_image", similarity.T, right.T)):
        best = scores.masked_fill(~truth, -torch.inf).amax(dim=1, keepdim=True)
        place = ((scores >= best) & ~truth).sum(dim=1)
        for k in PLACES:
            found[f"{name}_r{k}"] = 100 * float((place < k).float().mean())
    return found
