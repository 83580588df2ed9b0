"""Image-text contrast: each image finds its caption, and the reverse, among the teacher's features."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.objectives.states import Contrast
from m2i2.precision import full


def similarities(query: Tensor, keys: Sequence[Tensor], temperature: Tensor) -> Tensor:
    """Features [b, D] against all ``keys`` [K_i, D], divided by the temperature: [b, sum of K_i]."""
    query = full(query)
    return torch.cat([query @ part.to(query.dtype).T for part in keys], dim=1) / full(temperature)


def itc_loss(
    image: Tensor,
    text: Tensor,
    teacher_image: Sequence[Tensor],
    teacher_text: Sequence[Tensor],
    own: Tensor,
    temperature: Tensor,
    distillation: float | Tensor,
    excluded: Tensor | None,
) -> Contrast:
    """InfoNCE both ways against the teacher's features of the batch and the queue (paper; ALBEF).

    ``image``, ``text``: [b, D] the student's. ``teacher_image``, ``teacher_text``: the batch's [B, D], then further ones, such
    as the queue's [Q, D], which are never copied; ``own``: [b], the row of each sample's own pair in the batch.
    Targets are (1 - a) * one-hot + a * the teacher's softmax, a = ``distillation``.
    ``excluded``: [b, B + Q] boolean, pairs that are neither positive nor negative (they share an image or a caption).
    """
    image, text = full(image), full(text)

    def masked(similarity: Tensor) -> Tensor:
        return similarity if excluded is None else similarity.masked_fill(excluded, -torch.inf)

    share = torch.as_tensor(distillation, dtype=torch.float64, device=image.device)
    hard = (1 - share).float().to(image.dtype)  # the official one-hot targets are float32, in double runs too
    share = share.to(image.dtype)

    def one_way(query: Tensor, keys: Sequence[Tensor], teacher_query: Tensor) -> tuple[Tensor, Tensor]:
        similarity = similarities(query, keys, temperature)
        with torch.no_grad():
            soft = F.softmax(masked(similarities(teacher_query.to(query.dtype), keys, temperature)), dim=1)
        log_probabilities = F.log_softmax(masked(similarity), dim=1)
        positive = log_probabilities.gather(1, own.unsqueeze(1)).mean()
        distilled = (log_probabilities.masked_fill(soft == 0, 0) * soft).sum(1).mean()
        return -hard * positive - share * distilled, similarity

    image_loss, image_to_text = one_way(image, teacher_text, teacher_image[0][own])
    text_loss, text_to_image = one_way(text, teacher_image, teacher_text[0][own])
    return Contrast((image_loss + text_loss) / 2, image_to_text, text_to_image)
