"""From samples to batches: rows made by worker processes, each from its sample's own random stream."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader

from m2i2.data.loading.batch import Batch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.items import Collate, Items, Rows
from m2i2.data.loading.lookahead import Lookahead
from m2i2.data.loading.order import Order
from m2i2.data.loading.sampling import Position, Share, StepSampler
from m2i2.data.loading.workers import ending_with_it, start_worker
from m2i2.errors import M2I2Error

B = TypeVar("B", bound=Batch)


def read_batches(items: Items, numbers: Iterable[list[tuple[int, int]]], workers: int, pin_memory: bool) -> Iterator[Any]:
    """A batch for each list of (epoch, item), up to an error, which is raised; workers live as long as the iterator."""
    loader = DataLoader(
        items,
        batch_sampler=numbers,
        collate_fn=Collate(items.rows),
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
        prefetch_factor=2 if workers else None,
        pin_memory=pin_memory,
    )
    return _raising(iter(loader))


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, up to an error, which is raised; the workers end with it, or when the caller stops asking."""
    with ending_with_it(batches):
        for batch in batches:
            if isinstance(batch, M2I2Error):
                raise batch
            yield batch.received() if isinstance(batch, Batch) else batch


class Loader(Generic[B]):
    """Batches of this rank in training order; iterating again starts at the position given to `starting_at`."""

    def __init__(
        self,
        corpus: Corpus,
        rows: Rows,
        share: Share,
        *,
        epochs: int,
        seed: int,
        window: int,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.corpus, self.rows, self.share, self.seed, self.workers, self.pin_memory = (
            corpus,
            rows,
            share,
            seed,
            workers,
            pin_memory,
        )
        order = Order(corpus.shard_items, corpus.fingerprint, seed, window)
        self.sampler = StepSampler(order, share, epochs, Position())
        self.lookahead = Lookahead.of(corpus, order, epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[B]:
        items = Items(self.corpus, self.rows, self.seed, self.lookahead)
        return read_batches(items, self.sampler, self.workers, self.pin_memory)

    def starting_at(self, start: Position) -> None:
        """Begin the next iteration at ``start``."""
        self.sampler.start = replace(start)
