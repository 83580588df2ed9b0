"""Reading the items of a corpus by number; what becomes of one that cannot be read; errors on their way out of a worker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.lookahead import Lookahead
from m2i2.data.loading.randomness import SampleGenerator, sample_generator
from m2i2.data.shards.split import Sample
from m2i2.data.shards.storage import Unavailable
from m2i2.errors import M2I2Error

Row = dict[str, Any]
_SUBSTITUTES = 16
_STREAMS = SampleGenerator()


class Rows(Protocol):
    """How samples become rows, and rows a batch."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Row:
        """One row, random by ``rng`` alone, which is valid during the call. M2I2Error names a sample that gives no row."""
        ...

    def collate(self, rows: list[Row]) -> Any:
        """A batch of rows; each also holds its ``item`` (a number of the corpus) and what `unreadable_of` gathers."""
        ...


class Items(Dataset[Row | M2I2Error]):
    """Items by (epoch, number), each with its own random stream.

    With ``substitute``, in the place of an item that cannot be read comes another one of the data set, drawn from the item's
    own stream: every rank goes on with the same number of steps, and a rerun makes the same choice. Without it, and where a
    store does not answer, the error is returned.
    """

    def __init__(self, corpus: Corpus, rows: Rows, seed: int, lookahead: Lookahead | None, *, substitute: bool = True) -> None:
        self.corpus, self.rows, self.seed, self.lookahead, self.substitute = corpus, rows, seed, lookahead, substitute

    def __getitem__(self, index: Any) -> Row | M2I2Error:
        epoch, item = index
        if self.lookahead:
            self.lookahead.reading(epoch, item)
        unreadable: list[tuple[int, str]] = []
        others = self._others(epoch, item)
        while True:
            try:
                row = self.rows(self.corpus.read(item), _STREAMS.at(self.seed, epoch, item))
                return {"item": item, "unreadable": unreadable, **row}
            except Unavailable as e:
                return e
            except M2I2Error as e:
                if not self.substitute:
                    return e
                unreadable.append((item, str(e)))
                try:
                    item = next(others)
                except StopIteration:
                    return M2I2Error(f"{len(unreadable)} samples in a row could not be read; the first: {unreadable[0][1]}")

    def _others(self, epoch: int, item: int) -> Iterator[int]:
        """The items that may stand in its place, drawn when they are needed."""
        rng = sample_generator(self.seed, epoch, item, stream=1)
        yield from rng.integers(len(self.corpus), size=_SUBSTITUTES).tolist()


def unreadable_of(rows: Sequence[Row]) -> tuple[tuple[int, str], ...]:
    """(number, reason) of the items in whose places others stand."""
    return tuple(entry for row in rows for entry in row["unreadable"])


@dataclass(frozen=True)
class Collate:
    """Rows to a batch, or the first error among them.

    An error travels in the batch's place: raised in a worker it would arrive with the worker's traceback as its text.
    """

    rows: Rows

    def __call__(self, rows: list[Row | M2I2Error]) -> Any:
        good: list[Row] = []
        for row in rows:
            if isinstance(row, M2I2Error):
                return row
            good.append(row)
        return self.rows.collate(good)
