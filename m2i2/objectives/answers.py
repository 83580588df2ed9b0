"""The loss of finetuning: the answer, token by token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.objectives.soft_targets import soft_share
from m2i2.objectives.tokens import token_losses
from m2i2.precision import is_half


def answer_loss(
    logits: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    teacher_logits: Tensor | None = None,
    distillation: float | Tensor = 0.0,
    weight: float = 1.0,
) -> Tensor:
    """The mean over the questions of ``weight`` times the summed token loss of the answer.

    ``logits``, ``teacher_logits``: [B, A - 1, V], what follows each token of ``answer_ids`` [B, A] but the last; ``answer_mask``:
    [B, A]. The loss of a token is (1 - a) * CE + a * soft CE against the teacher, a = ``distillation`` (official code; the paper's
    momentum distillation).
    """
    labels, asked = answer_ids[:, 1:], answer_mask[:, 1:].to(torch.float32 if is_half(logits) else logits.dtype)
    if is_half(logits):
        soft, share = (None, None) if teacher_logits is None else (teacher_logits.flatten(0, 1), soft_share(distillation, asked))
        loss = token_losses(logits.flatten(0, 1), labels.flatten(), soft, share).view_as(labels)
        return weight * (loss * asked).sum(1).mean()
    log_probabilities = F.log_softmax(logits, dim=-1)
    loss = -log_probabilities.gather(2, labels.unsqueeze(2)).squeeze(2)
    share = soft_share(distillation, loss)
    if teacher_logits is not None and share is not None:
        soft = F.softmax(teacher_logits, dim=-1)
        loss = (1 - share) * loss - share * (log_probabilities * soft).sum(-1)
    return weight * (loss * asked).sum(1).mean()
