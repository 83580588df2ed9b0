"""What training runs read: the built-in demo data, the augmentation, and this rank's loader."""

from pathlib import Path
from typing import Any

from m2i2.config import DataConfig, TrainingConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows, QuestionRows
from m2i2.data.loading.sampling import Share
from m2i2.data.records import Kind
from m2i2.data.shards.building import Encoding, build
from m2i2.data.sources import open_source
from m2i2.distributed import on_first_rank
from m2i2.training.processes import Process

DEMO = Path("runs") / "demo-shards"


def demo_shards(kind: Kind) -> str:
    """The folder of the built-in demo data's shards, generated now where they are not there yet. Collective."""
    folder = DEMO / kind

    def draw() -> None:
        build(open_source(kind, "phantoms", None), folder, Encoding(side=128), options={})

    on_first_rank(draw)
    return str(folder)


def make_augmentation(size: int, data: DataConfig) -> Augmentation:
    """The augmentation that the settings describe."""
    return Augmentation(size=size, crop_scale=data.crop_scale, flip=data.flip, randaugment=data.randaugment)


def make_loader(
    corpus: Corpus,
    rows: CaptionRows | QuestionRows,
    data: DataConfig,
    training: TrainingConfig,
    process: Process,
    *,
    together: bool = False,
) -> Loader[Any]:
    """The loader of this rank's share; ``together``: the losses are those of a step's micro-batches together."""
    return Loader(
        corpus,
        rows,
        Share(training.batch, training.accumulation, process.rank, process.ranks, together),
        epochs=training.epochs,
        seed=training.seed,
        window=data.window,
        workers=data.workers,
        pin_memory=process.device.type == "cuda",
    )
