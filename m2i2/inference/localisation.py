"""Whether a map lies where it should: its mass inside a mask, against what chance would put there."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Localisation:
    """One map against one mask."""

    mass: float
    """Share of the map inside the mask."""
    chance: float
    """The mask's share of the image, which an even map would have inside."""
    hit: bool
    """Whether the hottest patch touches the mask ("pointing game")."""

    @property
    def gain(self) -> float:
        """How many times chance."""
        return self.mass / self.chance


def localise(cam: Tensor, mask: np.ndarray) -> Localisation:
    """A map [side, side] against a mask [H, W] bool, not empty, of the same image; a patch counts by the share covered."""
    inside = torch.from_numpy(mask).float()[None, None]
    cover = F.adaptive_avg_pool2d(inside, len(cam))[0, 0]
    total = float(cam.sum())
    mass = float((cam.cpu() * cover).sum()) / total if total else 0.0
    return Localisation(mass, float(cover.mean()), bool(total) and float(cover.flatten()[cam.flatten().argmax()]) > 0)
