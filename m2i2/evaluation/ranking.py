"""Answers by ranking a list of candidates: exactly, over all of them, or as the official code does.

Shapes: Q questions, N question tokens, C candidates, A tokens of the longest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.models.text import AnswerDecoder
from m2i2.objectives import full


@dataclass(frozen=True)
class CandidateTree:
    """Candidates as a tree of their prefixes, so that a shared beginning is read once.

    Node i holds token ``ids[i]`` at place ``positions[i]`` of its answers, and sees the nodes above it (``visible``
    [n, n]). Edge e leads from node ``parents[e]`` to the token ``tokens[e]``; candidate ``owner[p]`` takes edge ``edge[p]``.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    parents: Tensor
    tokens: Tensor
    owner: Tensor
    edge: Tensor
    candidates: int

    @classmethod
    def build(cls, candidates: list[list[int]]) -> "CandidateTree":
        """The tree of candidates, each [CLS] ... [SEP] [SEP]."""
        nodes: dict[tuple[int, ...], int] = {}
        edges: dict[tuple[int, ...], int] = {}
        above: list[int] = []
        owner, edge = [], []
        for number, tokens in enumerate(candidates):
            for end in range(1, len(tokens)):
                prefix = tuple(tokens[:end])
                if prefix not in nodes:
                    above.append(nodes[prefix[:-1]] if end > 1 else -1)
                    nodes[prefix] = len(nodes)
                owner.append(number)
                edge.append(edges.setdefault((*prefix, tokens[end]), len(edges)))
        visible = torch.eye(len(nodes), dtype=torch.bool)
        for node, parent in enumerate(above):
            if parent >= 0:
                visible[node] |= visible[parent]
        return cls(
            ids=torch.tensor([prefix[-1] for prefix in nodes]),
            positions=torch.tensor([len(prefix) - 1 for prefix in nodes]),
            visible=visible,
            parents=torch.tensor([nodes[path[:-1]] for path in edges]),
            tokens=torch.tensor([path[-1] for path in edges]),
            owner=torch.tensor(owner),
            edge=torch.tensor(edge),
            candidates=len(candidates),
        )

    def to(self, device: torch.device) -> "CandidateTree":
        """The same tree on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return CandidateTree(**moved)


def log_likelihoods(decoder: AnswerDecoder, states: Tensor, mask: Tensor, tree: CandidateTree, chunk: int = 1 << 24) -> Tensor:
    """log p(candidate | question) of every candidate, [Q, C]; states [Q, N, D], mask [Q, N].

    ``chunk`` bounds the vocabulary scores that are held at once, in numbers.
    """
    questions = len(states)
    decoded = decoder.read(
        tree.ids.expand(questions, -1), decoder.start(states, mask), visible=tree.visible, positions=tree.positions
    )
    weight = decoder.bert.embeddings.word_embeddings.weight
    rows = max(1, chunk // (questions * len(weight)))
    edge_scores = full(decoded).new_empty(questions, len(tree.tokens))
    for start in range(0, len(tree.ids), rows):
        logits = full(decoder.logits(decoded[:, start : start + rows]))
        here = ((tree.parents >= start) & (tree.parents < start + rows)).nonzero().squeeze(1)
        parents, tokens = tree.parents[here] - start, tree.tokens[here]
        edge_scores[:, here] = logits[:, parents, tokens] - logits.logsumexp(-1)[:, parents]
    total = edge_scores.new_zeros(questions, tree.candidates)
    return total.index_add(1, tree.owner, edge_scores[:, tree.edge])


def rank_official(
    decoder: AnswerDecoder, states: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The official ranking: the k candidates with the likeliest first token, ordered by their log-likelihood.

    ``ids``, ``ids_mask``: [C, A] candidates. Returns candidate numbers and probabilities [Q, k], best first. The first
    token's probability enters twice, as in the official code, once by itself and once within the likelihood.
    """
    questions, k = len(states), min(k, len(ids))
    start = decoder.read(ids[:1, :1].expand(questions, 1), decoder.start(states, mask))
    first = F.softmax(full(decoder.logits(start[:, 0])), dim=-1).index_select(1, ids[:, 1])
    first_of_best, best = first.topk(k, dim=1)
    chosen, chosen_mask = ids[best].flatten(0, 1), ids_mask[best].flatten(0, 1)
    decoded = decoder.read(chosen[:, :-1], decoder.start(states, mask))
    log_probabilities = F.log_softmax(full(decoder.logits(decoded)), dim=-1)
    token_scores = log_probabilities.gather(2, chosen[:, 1:, None]).squeeze(2) * chosen_mask[:, 1:]
    scores = first_of_best.log() + token_scores.sum(1).view(questions, k)
    probabilities, order = F.softmax(scores, dim=-1).topk(k, dim=1)
    return best.gather(1, order), probabilities
