"""Answers by ranking a list of candidates: exactly, over all of them, or as the official code does.

Shapes: Q questions, N question tokens, C candidates, A tokens of the longest, n nodes of their tree.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.models.text import AnswerDecoder
from m2i2.precision import full

ROWS = 32
"""Nodes per question whose scores over the vocabulary are held at once."""


@dataclass(frozen=True)
class CandidateTree:
    """Candidates as a tree of their prefixes, so that a shared beginning is read once.

    Node i is a prefix that some candidate goes on from: it ends in token ``ids[i]`` at place ``positions[i]`` and sees the
    nodes above it (``visible`` [n, n]). Node 0 is [CLS]. Edge e leads from node ``parents[e]`` by token ``tokens[e]``, and
    edge ``into[i]`` leads to node i (that of node 0 is 0 and means nothing); candidate c ends with edge ``last[c]``.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    into: Tensor
    parents: Tensor
    tokens: Tensor
    last: Tensor

    @classmethod
    def build(cls, candidates: list[list[int]]) -> "CandidateTree":
        """The tree of candidates, each [CLS] ... [SEP] [SEP]."""
        nodes: dict[tuple[int, ...], int] = {}
        edges: dict[tuple[int, ...], int] = {}
        for tokens in candidates:
            for end in range(1, len(tokens)):
                nodes.setdefault(tuple(tokens[:end]), len(nodes))
                edges.setdefault(tuple(tokens[: end + 1]), len(edges))
        above = [nodes[prefix[:-1]] if len(prefix) > 1 else -1 for prefix in nodes]
        visible = torch.eye(len(nodes), dtype=torch.bool)
        for node, parent in enumerate(above):
            if parent >= 0:
                visible[node] |= visible[parent]
        return cls(
            ids=torch.tensor([prefix[-1] for prefix in nodes]),
            positions=torch.tensor([len(prefix) - 1 for prefix in nodes]),
            visible=visible,
            into=torch.tensor([edges.get(prefix, 0) for prefix in nodes]),
            parents=torch.tensor([nodes[path[:-1]] for path in edges]),
            tokens=torch.tensor([path[-1] for path in edges]),
            last=torch.tensor([edges[tuple(tokens)] for tokens in candidates]),
        )

    def to(self, device: torch.device) -> "CandidateTree":
        """The same tree on ``device``."""
        return CandidateTree(**{name: value.to(device) for name, value in vars(self).items()})


class Best(NamedTuple):
    """The likeliest candidates of each question."""

    scores: Tensor
    """log p(candidate | question), [Q, k], best first."""
    numbers: Tensor
    """Which candidates they are, [Q, k]."""
    read: Tensor
    """Nodes of the tree that were read to prove it, [Q]."""


def likeliest(decoder: AnswerDecoder, states: Tensor, mask: Tensor, tree: CandidateTree, k: int, first: int = 4) -> Best:
    """The k likeliest of all candidates, exactly; states [Q, N, D], mask [Q, N].

    Branch and bound: a candidate is never likelier than its prefix, so that a node may stay unread once k candidates are
    likelier than its prefix. Each round reads each question's likeliest unread nodes, ``first`` of them in the second round
    (the first reads [CLS] alone) and twice as many in every other.
    """
    questions, k, device = len(states), min(k, len(tree.last)), states.device
    cache = decoder.start(states, mask)
    edge_scores = full(states).new_full((questions, len(tree.tokens)), -torch.inf)
    unread = torch.ones(questions, len(tree.ids), dtype=torch.bool, device=device)
    slots = torch.empty(questions, 0, dtype=torch.long, device=device)  # node of each row in the cache
    taken = torch.empty(questions, 0, dtype=torch.bool, device=device)  # whether it is one, or fills the rectangle
    wanted, chosen = torch.ones(questions, 1, dtype=torch.bool, device=device), slots.new_zeros(questions, 1)
    width = first
    while wanted.any():
        slots, taken = torch.cat([slots, chosen], 1), torch.cat([taken, wanted], 1)
        visible = tree.visible[chosen[:, :, None], slots[:, None, :]] & taken[:, None, :]
        new = chosen.shape[1]
        visible[:, :, -new:] |= torch.eye(new, dtype=torch.bool, device=device)
        decoded = decoder.read(tree.ids[chosen], cache, visible[:, None], tree.positions[chosen])
        unread.scatter_(1, chosen, unread.gather(1, chosen) & ~wanted)
        _score_edges(decoder, decoded, tree, chosen, wanted, edge_scores)

        prefixes = edge_scores[:, tree.into].masked_fill(~unread, -torch.inf)
        worst = edge_scores[:, tree.last].topk(k).values[:, -1:]
        prefixes = prefixes.masked_fill(prefixes < worst, -torch.inf)
        count = min(width, int((prefixes > -torch.inf).sum(1).max()))
        likely, chosen = prefixes.topk(count)
        wanted = likely > -torch.inf
        chosen = chosen.where(wanted, 0)
        width *= 2
    best = edge_scores[:, tree.last].topk(k)
    return Best(best.values, best.indices, (~unread).sum(1))


def _score_edges(
    decoder: AnswerDecoder, decoded: Tensor, tree: CandidateTree, chosen: Tensor, wanted: Tensor, edge_scores: Tensor
) -> None:
    """Set log p(prefix) of the edges that leave the ``chosen`` nodes [Q, m], from the nodes' states [Q, m, D]."""
    for start in range(0, chosen.shape[1], ROWS):
        nodes, real = chosen[:, start : start + ROWS], wanted[:, start : start + ROWS]
        logits = full(decoder.logits(decoded[:, start : start + ROWS]))
        normaliser = logits.logsumexp(-1)
        question, row, edge = (real[:, :, None] & (tree.parents == nodes[:, :, None])).nonzero(as_tuple=True)
        node = nodes[question, row]
        prefix = edge_scores[question, tree.into[node]].masked_fill(node == 0, 0.0)
        edge_scores[question, edge] = prefix + logits[question, row, tree.tokens[edge]] - normaliser[question, row]


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
