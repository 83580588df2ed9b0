"""Answers by beam search: written token by token, with cached keys and values."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.models.text import AnswerDecoder
from m2i2.precision import full

LONGEST = 10
"""Tokens of an answer that the official code writes at most."""


def beam_search(
    decoder: AnswerDecoder,
    states: Tensor,
    mask: Tensor,
    *,
    cls_id: int,
    sep_id: int,
    beams: int = 3,
    max_tokens: int = LONGEST,
) -> tuple[list[list[int]], Tensor]:
    """The likeliest answer that the search finds for each question, and its log-likelihood [Q]; see `all_beams`."""
    answers, scores = all_beams(decoder, states, mask, cls_id=cls_id, sep_id=sep_id, beams=beams, max_tokens=max_tokens)
    return [best[0] for best in answers], scores[:, 0]


def all_beams(
    decoder: AnswerDecoder,
    states: Tensor,
    mask: Tensor,
    *,
    cls_id: int,
    sep_id: int,
    beams: int = 3,
    max_tokens: int = LONGEST,
) -> tuple[list[list[list[int]]], Tensor]:
    """The ``beams`` answers that the search ends with for each question, likeliest first, and their log-likelihoods [Q, beams].

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
    # a beam that never could be continued (likelihood 0) has no [SEP]
    rows_of = tokens.view(questions, beams, -1).tolist()
    return [[row[1 : [*row, sep_id].index(sep_id)] for row in found] for found in rows_of], scores
