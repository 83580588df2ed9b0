"""Masked language modelling: the words that were left out, told from text and image."""

from torch import Tensor
from torch.nn import functional as F

from m2i2.distributed import mean_over_ranks
from m2i2.objectives import full


def mlm_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor, distillation: float) -> Tensor:
    """(1 - a) * CE(labels) + a * soft CE(teacher), the mean over the masked tokens of all ranks.

    ``logits``, ``teacher_logits``: [M, V] at the masked positions of this rank; ``labels``: [M]; a = ``distillation``.
    Ranks mask different numbers of words: dividing by their mean number makes the ranks' average the global mean.
    """
    log_probabilities = F.log_softmax(full(logits), dim=-1)
    loss = F.nll_loss(log_probabilities, labels, reduction="sum") * (1 - distillation)
    if distillation:
        soft = F.softmax(full(teacher_logits), dim=-1)
        loss = loss - distillation * (log_probabilities * soft).sum()
    count = mean_over_ranks(loss.new_full((), len(labels)))
    return loss / count.clamp_min(1e-6)
