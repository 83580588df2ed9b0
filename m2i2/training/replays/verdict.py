"""Which rank computes wrongly, from what several ranks computed of the same micro-batches."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """What a disagreement means."""

    ranks: list[int]
    """Those at fault; empty where the results of this machine's kernels change from one time to the next."""
    certain: bool = True
    """Whether all of them are; else one of them."""


def judge(first: Tensor, again: Tensor, wrong_answers: Sequence[bool]) -> Verdict:
    """Who is at fault where results differ.

    ``first``: [R, 2, n, 2], the n checksums of rank r's own micro-batch, and of that of rank r-1, as rank r computed them. Of one
    rank: both are its own. ``again``: [R, 2 or 3, n, 2], the same once more, and those of rank r-2 where there are more than two
    ranks. ``wrong_answers``: whether each rank's known products are wrong.
    """
    ranks = len(first)
    if any(wrong_answers):
        return Verdict([rank for rank, wrong in enumerate(wrong_answers) if wrong])
    if ranks == 1:  # of three results, two must be the same
        a, b, c = first[0, 0], first[0, 1], again[0, 0]
        return Verdict([0] if torch.equal(a, c) or torch.equal(b, c) else [])
    unsteady = [rank for rank in range(ranks) if not torch.equal(first[rank], again[rank, :2])]
    if unsteady:  # a fault comes alone; kernels without fixed bits are on all ranks
        return Verdict(unsteady if len(unsteady) == 1 else [])
    blamed, suspects = set[int](), list[set[int]]()
    for batch in range(ranks):
        voters = [(batch + number) % ranks for number in range(again.shape[1])]
        votes = [tuple(again[voter, number].flatten().tolist()) for number, voter in enumerate(voters)]
        usual, count = Counter(votes).most_common(1)[0]
        wrong = {voter for voter, vote in zip(voters, votes, strict=True) if vote != usual}
        if not wrong:
            continue
        if 2 * count > len(votes):
            blamed |= wrong
        else:
            suspects.append(set(voters))
    if blamed:
        return Verdict(sorted(blamed))
    common = set.intersection(*suspects) or set.union(*suspects)
    return Verdict(sorted(common), certain=len(common) == 1)
