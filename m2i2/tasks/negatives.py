"""The global batch's features, and which of its rows are the hard negatives of this rank's.

Nothing here is of size (global batch)^2: a rank holds its own b rows against the B of all ranks and the Q of the queue.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import all_gather_together, rank
from m2i2.precision import full
from m2i2.tasks.noise import gumbel_noise
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.teacher import TeacherTargets


class Negatives(NamedTuple):
    """One hard negative image for each text, and one hard negative text for each image."""

    image: Tensor
    """[b] rows of the global batch (of the rank's own, where negatives are local)."""
    text: Tensor
    image_there: Tensor
    """[b] bool, whether there was one to draw."""
    text_there: Tensor


@dataclass(frozen=True)
class GlobalBatch:
    """What the contrast and the queue take of the global batch: gathered once per micro-batch."""

    image: Tensor
    """[B, projection] the teacher's features; likewise ``text``."""
    text: Tensor
    image_ids: Tensor
    """[B]"""
    text_ids: Tensor
    queue: FeatureQueue
    """Further negatives of the contrast."""
    rows: int
    """b, the rows of one rank."""
    local: bool
    """Whether negatives come from this rank's own rows only (official code)."""

    @classmethod
    def gather(cls, targets: TeacherTargets, batch: CaptionBatch, queue: FeatureQueue, local: bool) -> "GlobalBatch":
        """Gather the features and identities of every rank's micro-batch. Collective."""
        mine = targets.image_features, targets.text_features, batch.image_id, batch.caption_id
        image, text, image_ids, text_ids = all_gather_together(mine)
        return cls(image, text, image_ids, text_ids, queue, len(batch), local)

    @property
    def first(self) -> int:
        """The global number of this rank's first row."""
        return rank() * self.rows

    def candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and identities (image, text, image_ids, text_ids) of what negatives come from: all rows, or the rank's own."""
        all_of = self.image, self.text, self.image_ids, self.text_ids
        if not self.local:
            return all_of
        mine = slice(self.first, self.first + self.rows)
        return self.image[mine], self.text[mine], self.image_ids[mine], self.text_ids[mine]

    def own(self) -> Tensor:
        """[b], where the rank's own rows stand among the candidates."""
        first = 0 if self.local else self.first
        return torch.arange(first, first + self.rows, device=self.image.device)

    def excluded(self) -> Tensor:
        """[b, candidates + Q] bool, the pairs that share an image or a caption, but for each row's own pair."""
        _, _, image_ids, text_ids = self.candidates()
        mine = slice(self.first, self.first + self.rows)
        same = _same(self.image_ids[mine], torch.cat([image_ids, self.queue.image_ids]))
        same |= _same(self.text_ids[mine], torch.cat([text_ids, self.queue.text_ids]))
        return same & ~self._own_pairs(same.shape[1])

    def _own_pairs(self, columns: int) -> Tensor:
        """[b, columns] bool, where a row meets its own pair."""
        own = self.own()
        return own.unsqueeze(1) == torch.arange(columns, device=own.device)

    def draw(self, text_to_image: Tensor, image_to_text: Tensor, excluded: Tensor | None, starts: Tensor) -> Negatives:
        """Hard negatives with probability softmax(similarity) among the candidates, [b, candidates] each, never the own pair.

        ``starts``: [2] int64, the `counter_start` of the images' draw and of the texts'.
        """
        count, device = text_to_image.shape[1], text_to_image.device
        forbidden = self._own_pairs(count)
        if excluded is not None:
            forbidden |= excluded
        rows = torch.arange(self.first, self.first + self.rows, device=device)
        offset = self.first if self.local else 0
        columns = torch.arange(offset, offset + count, device=device)
        image, image_there = draw_negatives(text_to_image, forbidden, gumbel_noise(starts[0], rows, columns))
        text, text_there = draw_negatives(image_to_text, forbidden, gumbel_noise(starts[1], rows, columns))
        return Negatives(image, text, image_there, text_there)


@torch.no_grad()
def draw_negatives(similarity: Tensor, forbidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One negative for each row, drawn with probability softmax(similarity) among the columns that are allowed.

    ``similarity``, Gumbel ``noise``: [b, B]; ``forbidden``: [b, B] boolean. Returns columns [b] and whether each row had one to
    draw from [b]. The argmax of log-probability plus Gumbel noise is an exact sample; it stays valid for NaN and infinite
    similarities.
    """
    scores = torch.nan_to_num(full(similarity), nan=0.0, posinf=1e4, neginf=-1e4) + noise
    return scores.masked_fill(forbidden, -torch.inf).argmax(dim=1), ~forbidden.all(dim=1)


def _same(mine: Tensor, all_ids: Tensor) -> Tensor:
    """[b], [B] identities -> [b, B] where they are equal; the queue's -1 (empty) equals none."""
    return mine.unsqueeze(1) == all_ids.unsqueeze(0)
