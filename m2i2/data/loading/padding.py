"""Rows of tokens of unequal length as one tensor."""

import numpy as np
import torch


def pad_rows(rows: list[list[int]], value: int, length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one [B, longest] int64 tensor, at least ``length`` long, and its mask of ones and zeros."""
    longest = max(length, *map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
