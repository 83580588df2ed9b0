"""Cross-entropy over a vocabulary from half-precision logits, without a float32 copy of them.

At a batch of 256 captions the float32 logits, log-probabilities and soft targets of the masked words take half a gigabyte, most of
it until the backward pass. Here they exist for some rows at a time, and the backward pass makes them again.
"""

from typing import Any

import torch
from torch import Tensor

_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Logits that are float32 at a time: on a CPU what stays in its cache, on a GPU 64 MB in few launches."""


def token_losses(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, share: Tensor | None = None) -> Tensor:
    """(1 - share) * CE(labels) + share * soft CE(teacher) of every token, as float32 [N].

    ``logits``, ``teacher_logits``: [N, V] in half precision; ``labels``: [N], all of them words; ``share``: [], None where soft
    targets have no share. Only ``logits`` are differentiated.
    """
    losses: Tensor = _InPieces.apply(logits, labels, None if share is None else teacher_logits, share)
    return losses


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, share: Tensor | None) -> Tensor:
        losses, normalisers = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
        for rows in _pieces(logits):
            scores = logits[rows].float()
            normaliser = scores.logsumexp(-1)
            loss = normaliser - scores.gather(1, labels[rows].unsqueeze(1)).squeeze(1)
            if teacher_logits is not None and share is not None:
                soft = teacher_logits[rows].float().softmax(-1)
                loss = (1 - share) * loss + share * (normaliser - (soft * scores).sum(-1))
            losses[rows], normalisers[rows] = loss, normaliser
        ctx.save_for_backward(logits, labels, teacher_logits, share, normalisers)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, teacher_logits, share, normalisers = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        for rows in _pieces(logits):
            found = logits[rows].float().sub_(normalisers[rows].unsqueeze(1)).exp_()
            label, hard = labels[rows].unsqueeze(1), 1.0
            if teacher_logits is not None:
                found -= share * teacher_logits[rows].float().softmax(-1)
                hard = 1 - share
            found.scatter_(1, label, found.gather(1, label) - hard)
            of_logits[rows] = found.mul_(gradients[0][rows].unsqueeze(1))
        return of_logits, None, None, None


def _pieces(logits: Tensor) -> list[slice]:
    step = max(1, _NUMBERS.get(logits.device.type, 1 << 24) // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
