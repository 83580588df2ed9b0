"""The loader as a library: pairs of image and text, in an order that a stop, other workers and other ranks do not change."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from m2i2 import distributed
from m2i2.config import DataConfig
from m2i2.data.images.transforms import Augmentation, EvaluationTransform
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.items import Items
from m2i2.data.loading.loader import read_batches
from m2i2.data.loading.lookahead import Lookahead
from m2i2.data.loading.order import Order
from m2i2.data.loading.pairs import Pair, PairDataset, Pairs
from m2i2.data.loading.sampling import EpochSampler
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import Sample, ShardSplit, read_index
from m2i2.data.shards.storage import Storage
from m2i2.errors import M2I2Error

Place = str | Path | Storage


def open_samples(
    place: Place | Sequence[Place],
    split: str,
    batch: int,
    *,
    rank: int | None = None,
    ranks: int | None = None,
    transform: Callable[[Any], Any] | Augmentation | EvaluationTransform | None = None,
    text: Callable[[Sample], Any] | None = None,
    collate: Callable[[list[Pair]], Any] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    damage: Literal["raise", "substitute"] = "raise",
    workers: int = 0,
    decode: bool = True,
    pin_memory: bool = False,
    settings: DataConfig | None = None,
) -> "SampleLoader":
    """Batches of a split of caption or question shards. See docs/loader.md.

    ``place``: a folder made by tools/make_shards.py, its URL, or several of them.
    ``batch``: samples of a batch of all ranks together; ``rank`` of ``ranks`` gets a slice of each. Default: those of
    torch.distributed, where it is initialised; else 0 of 1.
    ``transform``: image -> anything; default: the PIL image (RGB) itself. Random numbers of torch, numpy and Python that it
    draws belong to the sample. ``decode=False`` gives it the stored bytes.
    ``text``: `Sample` -> anything; default: a caption, or (question, answer).
    ``collate``: [(image, text), ...] -> a batch; default: that list.
    ``shuffle=False`` reads in stored order. ``drop_last``: leave out the tail that fills no batch.
    ``damage``: raise an M2I2Error for a sample that cannot be read, or read another one in its place, with a warning.
    ``workers``: processes that read; 0 reads in this one. ``settings``: ``window``, and the cache for URLs.

    M2I2Error for a place without such a split, a batch that the ranks cannot share out, and unknown words.
    """
    settings = settings or DataConfig()
    if damage not in ("raise", "substitute"):
        raise M2I2Error(f"damage={damage!r} is neither 'raise' nor 'substitute'.")
    if workers < 0 or seed < 0:
        raise M2I2Error(f"workers={workers} and seed={seed} must not be negative.")
    if (rank is None) != (ranks is None):
        raise M2I2Error(f"rank={rank} and ranks={ranks} belong together; give both, or neither.")
    if rank is None or ranks is None:
        rank, ranks = distributed.rank(), distributed.world_size()
    if not 0 <= rank < ranks:
        raise M2I2Error(f"rank={rank} must lie between 0 and ranks - 1 = {ranks - 1}.")
    corpus = _corpus([place] if isinstance(place, str | Path | Storage) else place, split, settings)
    order = Order(corpus.shard_items, corpus.fingerprint, seed, settings.window, shuffle=shuffle)
    sampler = EpochSampler(order=order, batch=batch, rank=rank, ranks=ranks, drop_last=drop_last)
    pairs = Pairs(transform=transform, text=text, collate_pairs=collate, decode=decode)
    lookahead = Lookahead.of(corpus, order, epochs=1 << 31)
    items = Items(corpus, pairs, seed, lookahead, substitute=damage == "substitute")
    return SampleLoader(items, sampler, PairDataset(corpus, pairs), workers=workers, pin_memory=pin_memory)


def _corpus(places: Sequence[Place], split: str, settings: DataConfig) -> Corpus:
    """The split of all places, captions or questions."""
    storages = [storage_of(place, settings) for place in places]
    kinds = {storage.place: read_index(storage)["kind"] for storage in storages}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{place} ({kind})" for place, kind in kinds.items())
        raise M2I2Error(f"Captions and questions cannot be read together: {listed}. Open one kind at a time.")
    return Corpus([ShardSplit.open(storage, split, kinds[storage.place]) for storage in storages])


class SampleLoader:
    """A rank's batches, one epoch for each iteration, as a DataLoader gives them. Made by `open_samples`."""

    def __init__(self, items: Items, sampler: EpochSampler, dataset: PairDataset, *, workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        """The same pairs by number, for ``len(loader.dataset)``, ``loader.dataset[7]`` and plain DataLoaders."""
        self.unreadable: list[tuple[int, str]] = []
        """(number, reason) of the samples so far in whose places others were read."""
        self._items, self._sampler, self._workers, self._pin_memory = items, sampler, workers, pin_memory
        self._begun = False
        """Whether the sampler's epoch has been asked for, so that the next iteration is one of the next epoch."""
        self._reading = object()
        """The newest iteration: it alone moves the position."""

    @property
    def batch_size(self) -> int:
        """Samples of this rank in a full batch."""
        return self._sampler.batch // self._sampler.ranks

    @property
    def epoch(self) -> int:
        """The epoch that is being read, or was last; before an iteration the one it will read."""
        return self._sampler.epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return len(replace(self._sampler, start=0))

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._sampler = replace(self._sampler, epoch=self.epoch + 1, start=0)
        self._begun, self._reading = True, object()
        return self._batches(self._sampler, self._reading)

    def _batches(self, sampler: EpochSampler, reading: object) -> Iterator[Any]:
        batches = read_batches(self._items, sampler, self._workers, self._pin_memory)
        for end, (batch, unreadable) in zip(sampler.ends(), batches, strict=True):
            for item, reason in unreadable:
                self.unreadable.append((item, reason))
                warnings.warn(f"{reason} Another sample stands in its place.", stacklevel=2)
            if self._reading is reading:
                self._sampler = replace(sampler, start=end)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration read ``epoch``; one that `load_state_dict` returned to is continued."""
        if epoch < 0:
            raise M2I2Error(f"epoch={epoch} must not be negative.")
        if self._begun or epoch != self.epoch:
            self._begun, self._reading = False, object()
            self._sampler = replace(self._sampler, epoch=epoch, start=0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, after the batches that were handed out: numbers and texts, the same on every rank."""
        return {"epoch": self.epoch, "samples": self._sampler.start, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was asked, with any number of ranks and workers and any batch.

        M2I2Error for the state of other data, of another seed or window, or of another order.
        """
        for name, own in self._identity().items():
            if name not in state:
                raise M2I2Error(f"The state lacks {name!r}; it is none of this loader's state_dict().")
            if state[name] != own:
                raise M2I2Error(
                    f"The state was saved with {name}={state[name]!r}, this loader has {name}={own!r}, so its order is another. "
                    f"Open the same data in the same way."
                )
        epoch, samples = state.get("epoch"), state.get("samples")
        total = len(self._sampler.order)
        if type(epoch) is not int or type(samples) is not int or epoch < 0 or not 0 <= samples <= total:
            raise M2I2Error(f"The state has epoch={epoch!r} and samples={samples!r}; an epoch has {total} samples.")
        sampler = replace(self._sampler, epoch=epoch, start=samples)
        if not len(sampler):
            sampler = replace(sampler, epoch=epoch + 1, start=0)
        self._sampler, self._begun, self._reading = sampler, False, object()

    def _identity(self) -> dict[str, Any]:
        """What decides the order."""
        order = self._sampler.order
        return {"data": order.fingerprint, "seed": order.seed, "shuffle": order.shuffle, "window": order.window}
