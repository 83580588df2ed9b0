"""The global batch's features, and which of its rows are the hard negatives of this rank's.

Nothing here is of size (global batch)^2: a rank holds its own b rows against the B of all ranks and the Q of the queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import all_gather_together, rank
from m2i2.objectives.itc import similarities
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

    def rows(self, chosen: slice) -> "Negatives":
        """Those of some rows."""
        return Negatives(self.image[chosen], self.text[chosen], self.image_there[chosen], self.text_there[chosen])


@dataclass(frozen=True)
class GlobalBatch:
    """What the contrast and the queue take of the global batch, and the rows that are looked at: this rank's, or some of them.

    Gathered once per micro-batch, or once per step where micro-batches are computed together.
    """

    image: Tensor
    """[B, projection] the teacher's features; the same for ``text``."""
    text: Tensor
    image_ids: Tensor
    """[B]"""
    text_ids: Tensor
    queue: FeatureQueue
    """Further negatives of the contrast."""
    local: bool
    """Whether negatives come from this rank's own rows only (official code)."""
    rows_of_rank: int
    first: int
    """The global number of the first row that is looked at."""
    rows: int
    """b, how many are."""

    @classmethod
    def gather(cls, targets: TeacherTargets, batch: CaptionBatch, queue: FeatureQueue, local: bool) -> "GlobalBatch":
        """Gather the features and identities of every rank's micro-batch. Collective."""
        return cls.of((targets.image_features, targets.text_features, batch.image_id, batch.caption_id), queue, local)

    @classmethod
    def of(cls, mine: Sequence[Tensor], queue: FeatureQueue, local: bool) -> "GlobalBatch":
        """The same from ``mine``: this rank's image features, text features, image_ids and text_ids. Collective."""
        image, text, image_ids, text_ids = all_gather_together(mine)
        rows = len(mine[0])
        return cls(image, text, image_ids, text_ids, queue, local, rows, rank() * rows, rows)

    def part(self, start: int, rows: int) -> "GlobalBatch":
        """The same, looked at from only so many of the rows, from ``start`` of them on."""
        return replace(self, first=self.first + start, rows=rows)

    @property
    def _among(self) -> slice:
        """The rows that negatives come from: all, or the rank's own."""
        mine = self.first - self.first % self.rows_of_rank
        return slice(mine, mine + self.rows_of_rank) if self.local else slice(0, len(self.image))

    def candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and identities (image, text, image_ids, text_ids) of what negatives come from."""
        among = self._among
        return self.image[among], self.text[among], self.image_ids[among], self.text_ids[among]

    def own(self) -> Tensor:
        """[b], where the rows stand among the candidates."""
        first = self.first - self._among.start
        return torch.arange(first, first + self.rows, device=self.image.device)

    def excluded(self, similar: float = 1.0) -> Tensor:
        """[b, candidates + Q] bool, the pairs that share an image or a caption, but for each row's own pair.

        ``similar``: the cosine similarity of the teacher's text features from which on captions count as the same; 1 = never.
        """
        _, text, image_ids, text_ids = self.candidates()
        mine = slice(self.first, self.first + self.rows)
        same = _same(self.image_ids[mine], torch.cat([image_ids, self.queue.image_ids]))
        same |= _same(self.text_ids[mine], torch.cat([text_ids, self.queue.text_ids]))
        if similar < 1:
            same |= similarities(self.text[mine], (text, self.queue.text), torch.ones_like(text[0, 0])) >= similar
        return same & ~self._own_pairs(same.shape[1])

    def _own_pairs(self, columns: int) -> Tensor:
        """[b, columns] bool, where a row meets its own pair."""
        own = self.own()
        return own.unsqueeze(1) == torch.arange(columns, device=own.device)

    def draw(
        self, text_to_image: Tensor, image_to_text: Tensor, excluded: Tensor | None, starts: Tensor, hardness: float = 1.0
    ) -> Negatives:
        """Hard negatives with probability softmax(hardness * similarity) among the candidates, never the own pair.

        Similarities: [b, candidates]. ``starts``: [2] int64, the `counter_start` of the images' draw and of the texts'.
        """
        if hardness != 1:
            text_to_image, image_to_text = hardness * text_to_image, hardness * image_to_text
        count, device = text_to_image.shape[1], text_to_image.device
        forbidden = self._own_pairs(count)
        if excluded is not None:
            forbidden |= excluded
        rows = torch.arange(self.first, self.first + self.rows, device=device)
        columns = torch.arange(self._among.start, self._among.stop, device=device)
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
