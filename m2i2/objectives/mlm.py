"""Masked language modelling: the words that were left out, predicted from text and image."""

from torch import Tensor
from torch.nn import functional as F

from m2i2.objectives.soft_targets import soft_share
from m2i2.objectives.tokens import token_losses
from m2i2.precision import is_half


def mlm_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor, mean_count: Tensor, distillation: float | Tensor) -> Tensor:
    """(1 - a) * CE(labels) + a * soft CE(teacher), the mean over the masked words of all ranks.

    ``logits``, ``teacher_logits``: [M, V] at the masked positions of this rank; ``labels``: [M], -100 where nothing is asked; a =
    ``distillation``.
    ``mean_count``: masked words of a rank, the mean over the ranks. Ranks mask different numbers of words: dividing by it makes the
    ranks' average the global mean.
    """
    if is_half(logits):
        asked = labels != -100
        losses = token_losses(logits, labels.clamp_min(0), teacher_logits, soft_share(distillation, mean_count))
        return (losses * asked).sum() / mean_count.to(losses.dtype).clamp_min(1e-6)
    log_probabilities = F.log_softmax(logits, dim=-1)
    loss = F.nll_loss(log_probabilities, labels, reduction="sum", ignore_index=-100)
    share = soft_share(distillation, loss)
    if share is not None:
        soft = F.softmax(teacher_logits, dim=-1)
        loss = (1 - share) * loss - share * ((log_probabilities * soft).sum(-1) * (labels != -100)).sum()
    return loss / mean_count.to(loss.dtype).clamp_min(1e-6)
