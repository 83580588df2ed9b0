"""Retrieval among held-out pairs: recall at k and the median rank both ways, with intervals, beside chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from m2i2.errors import plain
from m2i2.evaluation.scoring import resampled_medians, share_interval
from m2i2.training.retrieval import PLACES, places

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def retrieval_scores(
    scored: Mapping[str, tuple[Tensor, Tensor]], image_id: Sequence[int], caption_id: Sequence[int]
) -> dict[str, Any]:
    """For each way (`WAYS`) and each scorer: recalls in percent and the median rank (from 1), with 95 % intervals; and chance.

    ``scored``: by scorer its [N, N] scores, images by captions, and captions by images. Pairs whose image or caption is
    equal are right for each other. Intervals are over different images, or captions: those that ask.
    """
    images, captions = torch.tensor(image_id), torch.tensor(caption_id)
    right = (images[:, None] == images) | (captions[:, None] == captions)
    found: dict[str, Any] = {"pairs": len(images), "images": len(set(image_id)), "captions": len(set(caption_id))}
    for number, (way, asking) in enumerate(zip(WAYS, (image_id, caption_id), strict=True)):
        truth = right if way == "image_to_text" else right.T
        clusters = [str(one) for one in asking]
        found[way] = {
            name: _of((1 + places(matrices[number].cpu(), truth)).tolist(), clusters) for name, matrices in scored.items()
        }
        found[way]["chance"] = chance(truth.sum(1).tolist(), len(images))
    return found


def _of(ranks: list[int], clusters: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for k in PLACES:
        hits = [float(rank <= k) for rank in ranks]
        low, high = share_interval(hits, clusters)
        made[f"r{k}"] = round(100 * float(np.mean(hits)), 2)
        made[f"r{k}_interval"] = [round(100 * low, 2), round(100 * high, 2)]
    low, high = np.percentile(resampled_medians(ranks, clusters), [2.5, 97.5])
    return {**made, "median_rank": float(np.median(ranks)), "median_rank_interval": [float(low), float(high)]}


def chance(right: Sequence[int], total: int) -> dict[str, float]:
    """The same figures, expected of a random order of ``total`` answers of which ``right`` (one number a query) are right."""
    counts = np.bincount(np.asarray(right))
    numbers = np.flatnonzero(counts)

    def within(k: int) -> float:
        """The share of queries with a right answer among the first k: 1 - C(N - r, k) / C(N, k)."""
        missed = [math.exp(_log_choose(total - r, k) - _log_choose(total, k)) if total - r >= k else 0.0 for r in numbers.tolist()]
        return float(1 - np.average(missed, weights=counts[numbers]))

    low, high = 1, total
    while low < high:  # the first k that half of the queries reach
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) >= 0.5 else (middle + 1, high)
    return {**{f"r{k}": round(100 * within(min(k, total)), 2) for k in PLACES}, "median_rank": float(low)}


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def show_retrieval(name: str, found: Mapping[str, Any], console: Console | None = None) -> None:
    """A table of one source."""
    title = f"{name}: {found['pairs']} pairs, {found['images']} different images, {found['captions']} different captions"
    table = Table(title=Text(plain(title)), title_justify="left")
    for column in ("", "by"):
        table.add_column(column, no_wrap=True)
    for column in (*(f"recall@{k}, %" for k in PLACES), "median rank"):
        table.add_column(column, justify="right")
    for way, label in WAYS.items():
        for scorer, row in found[way].items():
            cells = [_cell(row[f"r{k}"], row.get(f"r{k}_interval")) for k in PLACES]
            last = scorer == "chance"
            table.add_row(label, scorer, *cells, _cell(row["median_rank"], row.get("median_rank_interval")), end_section=last)
    (console or Console()).print(table)


def _cell(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.1f}" if interval is None else f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
