"""Held-out pairs: always the same ones, whole images, with masks of their own; each rank takes its share of every batch."""

from collections.abc import Iterator
from itertools import islice

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import EvaluationTransform
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.loading.sampling import Share
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.training.processes import Process


class HeldOutPairs:
    """Batches that every measurement reads again from memory."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, config: PretrainingConfig, process: Process) -> None:
        """``corpus`` has at least as many items as there are ranks."""
        self.tokenizer, self.process = tokenizer, process
        together = (
            config.training.batch if config.objectives.scope == "batch" else config.training.batch // config.training.accumulation
        )
        batch = min(together, len(corpus)) // process.ranks * process.ranks
        whole = EvaluationTransform(size=config.vision.image_size)
        rows = CaptionRows.of(config, lambda encoded, rng, name: whole(encoded, name), tokenizer, process.ranks)
        self.share = Share(batch, 1, process.rank, process.ranks)
        self._loader: Loader[CaptionBatch] = Loader(
            corpus, rows, self.share, epochs=1, seed=0, window=config.data.window, workers=0
        )
        self.batches = min(max(1, config.validation.pairs // batch), self._loader.steps_per_epoch)
        self._stored: list[CaptionBatch] = []

    @property
    def pairs(self) -> int:
        """Pairs of all ranks."""
        return self.batches * self.share.batch

    def stored(self) -> list[CaptionBatch]:
        """This rank's batches, as the loader made them."""
        if not self._stored:
            self._stored = list(islice(self._loader, self.batches))
        return self._stored

    def __iter__(self) -> Iterator[CaptionBatch]:
        """This rank's batches on its device."""
        return (batch.to(self.process.device) for batch in self.stored())

    def first_rows(self, count: int) -> list[tuple[int, int]]:
        """(batch, row) of at most ``count`` of this rank's pairs."""
        return [(number, row) for number in range(self.batches) for row in range(self.share.micro_batch)][:count]
