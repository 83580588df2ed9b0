"""Answers by beam search: written token by token, with cached keys and values."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.models.text import AnswerDecoder
from m2i2.objectives import full


def beam_search(
    decoder: AnswerDecoder,
    states: Tensor,
    mask: Tensor,
    *,
    cls_id: int,
    sep_id: int,
    beams: int = 3,
    max_tokens: int = 10,
) -> tuple[list[list[int]], Tensor]:
    """The likeliest answer that the search finds for each question, and its log-likelihood [Q].

    ``states``: [Q, N, D], ``mask``: [Q, N]. An answer ends with its first [SEP], or after ``max_tokens`` tokens; an empty
    one is not given. Scores are summed log-probabilities, the closing [SEP] included, without normalisation by length.
    """
    questions, device = len(states), states.device
    cache = decoder.start(states, mask)
    rows = questions * beams
    tokens = torch.full((rows, 1), cls_id, device=device)
    scores = torch.full((questions, beams), -torch.inf, device=device, dtype=full(states).dtype)
    scores[:, 0] = 0  # all beams start alike: only one may be continued
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_tokens + 1):
        decoded = decoder.read(tokens[:, -1:], cache)
        log_probabilities = F.log_softmax(full(decoder.logits(decoded[:, 0])), dim=-1)
        if step == 0:
            log_probabilities[:, sep_id] = -torch.inf
        if step == max_tokens:  # no room left: close
            closing = log_probabilities[:, sep_id].clone()
            log_probabilities.fill_(-torch.inf)
            log_probabilities[:, sep_id] = closing
        log_probabilities[ended] = -torch.inf
        log_probabilities[ended, sep_id] = 0
        vocabulary = log_probabilities.shape[1]
        sums = (scores.view(rows, 1) + log_probabilities).view(questions, beams * vocabulary)
        scores, places = sums.topk(beams, dim=1)
        origin = (places // vocabulary + beams * torch.arange(questions, device=device)[:, None]).flatten()
        added = (places % vocabulary).flatten()
        tokens = torch.cat([tokens[origin], added[:, None]], dim=1)
        ended = ended[origin] | (added == sep_id)
        cache.reorder(origin)
        if bool(ended.all()):
            break
    best = tokens.view(questions, beams, -1)[:, 0].tolist()
    return [answer[1 : answer.index(sep_id)] for answer in best], scores[:, 0]
