"""Images a second through whole loaders, from stored JPEGs to batches: this tree, an earlier one, and other libraries.

    python benchmarks/loading.py                                  # built-in images; whichever peers are installed
    python benchmarks/loading.py rocov2 DIR --before ../old-tree  # with an earlier tree, such as one of `git worktree add`

Every figure is the median of several rounds; in a round every contender runs once, in a process of its own, with 0 workers and
with 2. All decode and crop to the same size; peers do it by torchvision's `decode_jpeg` and its crops of tensors (bicubic,
antialiased). The first batch is waited for before the clock starts. Peers: litdata, torchdata, webdataset, mosaicml-streaming, spdl
(threads). `open` is m2i2.data.open. benchmarks/peers.py compares what loaders do beside being fast.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

HERE = Path(__file__).resolve().parent.parent
PEERS = ("litdata", "torchdata", "webdataset", "streaming", "spdl")
SIZE, SCALE = 256, (0.2, 1.0)


class Tensors:
    """The same crops by torchvision: what the peers run."""

    def __init__(self) -> None:
        import torchvision.io
        from torchvision.transforms import InterpolationMode, v2

        self.read, self.mode = torchvision.io.decode_jpeg, torchvision.io.ImageReadMode
        self.crop = v2.RandomResizedCrop(SIZE, scale=SCALE, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def __call__(self, encoded: bytes, *_: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = self.read(torch.frombuffer(encoded, dtype=torch.uint8))
        return self.crop(image).expand(3, -1, -1).contiguous()


class Rows:
    """Rows of images alone."""

    def __init__(self, transform: Callable[..., torch.Tensor]) -> None:
        self.transform = transform

    def __call__(self, sample: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": self.transform(sample.image, rng, sample.key)}

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        images = [row["image"] for row in rows]
        try:
            from m2i2.data.loading.slots import stacked
        except ImportError:  # an earlier tree
            return SimpleNamespace(image=torch.stack(images))
        from m2i2.data.loading.batch import Batch

        return Batch(image=stacked(images), item=torch.zeros(len(images)))


class Transformed:
    """What a peer hands out, transformed in its worker."""

    def __init__(self, field: str | None) -> None:
        self.field, self.transform = field, Tensors()

    def __call__(self, sample: Any) -> torch.Tensor:
        return self.transform(sample[self.field] if self.field else sample)


def start(_: int) -> None:
    torch.set_num_threads(1)


def loaded(dataset: Any, batch: int, workers: int, kind: Any = DataLoader) -> Iterator[torch.Tensor]:
    options = {"worker_init_fn": start, "prefetch_factor": 2} if workers else {}
    return iter(kind(dataset, batch_size=batch, num_workers=workers, **options))


def batches(name: str, folder: Path, batch: int, workers: int, operations: int) -> Iterator[Any]:
    """Batches of a contender."""
    if name in PEERS:
        return globals()[f"by_{name}"](folder / name, batch, workers)
    import m2i2.data
    from m2i2.data.images.transforms import Augmentation
    from m2i2.data.loading.corpus import Corpus
    from m2i2.data.loading.loader import Loader
    from m2i2.data.loading.sampling import Share

    ours = Augmentation(size=SIZE, crop_scale=SCALE, flip=False, randaugment=(operations, 7))
    if name == "open":
        return iter(m2i2.data.open(folder / "shards", "train", batch, transform=ours, collate=images_alone, workers=workers))
    rows = Rows(Tensors() if name == "tensors" else ours)
    corpus = Corpus.open([folder / "shards"], "train", "captions")
    return iter(Loader(corpus, rows, Share(batch, 1, 0, 1), epochs=1, seed=0, window=16, workers=workers))


def images_alone(pairs: list[tuple[torch.Tensor, Any]]) -> torch.Tensor:
    return default_collate([image for image, _ in pairs])


def by_litdata(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, transform=Transformed("image"))
    return loaded(dataset, batch, workers, StreamingDataLoader)


def by_streaming(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    import streaming

    class Images(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return transform(super().__getitem__(at))

    transform = Transformed("image")
    return loaded(Images(local=str(folder), shuffle=True, batch_size=batch), batch, workers)


def by_webdataset(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    import webdataset

    urls = [str(path) for path in sorted((folder.parent / "shards").glob("train-*.tar"))]
    return loaded(webdataset.WebDataset(urls, shardshuffle=False).map(Transformed("jpg")), batch, workers)


class Reading:
    """Items of one file of images, for libraries that bring no format."""

    def __init__(self, folder: Path) -> None:
        self.table, self.transform = np.load(folder / "table.npy"), Transformed(None)
        self.file = os.open(folder / "images", os.O_RDONLY)

    def __call__(self, items: list[int]) -> torch.Tensor:
        return default_collate([self.transform(os.pread(self.file, *map(int, self.table[i][::-1]))) for i in items])


def by_torchdata(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    from torch.utils.data import RandomSampler
    from torchdata import nodes

    reading = Reading(folder)
    node: Any = nodes.Batcher(nodes.SamplerWrapper(RandomSampler(reading.table)), batch_size=batch, drop_last=True)
    if workers:
        node = nodes.ParallelMapper(node, reading, num_workers=workers, in_order=True, method="process")
        return iter(nodes.Loader(nodes.Prefetcher(node, prefetch_factor=2)))
    return iter(nodes.Loader(nodes.Mapper(node, reading)))


def by_spdl(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    from spdl.pipeline import PipelineBuilder
    from torch.utils.data import RandomSampler

    reading, threads = Reading(folder), max(1, workers)
    builder = PipelineBuilder().add_source(iter(RandomSampler(reading.table))).aggregate(batch, drop_last=True)
    pipeline = builder.pipe(reading, concurrency=threads).add_sink(2).build(num_threads=threads)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


def prepare(name: str, folder: Path) -> None:
    """The stored images once more as a peer wants them. Runs in a process of its own."""
    from m2i2.data.loading.corpus import Corpus

    corpus = Corpus.open([folder / "shards"], "train", "captions")
    images: Iterable[bytes] = (corpus.read(item).image for item in range(len(corpus)))
    if name == "litdata":
        import litdata

        items = [{"image": image} for image in images]
        litdata.optimize(dict, items, str(folder / name), chunk_bytes="64MB", num_workers=1)
    elif name == "streaming":
        import streaming

        with streaming.MDSWriter(out=str(folder / name), columns={"image": "bytes"}) as writer:
            for image in images:
                writer.write({"image": image})
    elif name in ("torchdata", "spdl"):
        (folder / name).mkdir()
        rows, place = [], 0
        with (folder / name / "images").open("wb") as file:
            for image in images:
                file.write(image)
                rows.append((place, len(image)))
                place += len(image)
        np.save(folder / name / "table.npy", np.array(rows))


def measure(name: str, folder: Path, batch: int, workers: int, operations: int) -> dict[str, float]:
    """Images a second of one contender, and the largest private memory of a worker."""
    torch.set_num_threads(1)
    found = batches(name, folder, batch, workers, operations)
    next(found)
    images, memory, clock = 0, 0.0, time.perf_counter()
    for one in found:
        images += len(one.image if hasattr(one, "image") else one)
        if workers and images % (16 * batch) == 0:
            memory = max(memory, worker_memory())
    return {"images_per_s": images / (time.perf_counter() - clock), "worker_mb": memory}


def worker_memory() -> float:
    """Private MB of the largest child process."""
    found = [0.0]
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        try:
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1e3)
    return max(found)


def in_a_process(tree: Path, *words: str) -> Any:
    """The last line that this script prints there, with the package of ``tree``."""
    paths = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", nargs="?", default="phantoms", help="caption data, as make_shards names it (%(default)s)")
    add("path", nargs="?", type=Path, help="where it lies")
    add("--before", type=Path, metavar="TREE", help="an earlier checkout, measured beside this one")
    add("--images", type=int, default=4000, help="with phantoms: how many (%(default)s)")
    add("--batch", type=int, default=32)
    add("--rounds", type=int, default=5)
    add("--workers", type=int, default=2)
    add("--only", nargs="+", help="contenders (default: all that are there)")
    add("--task", nargs="+", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.task:
        step, name, folder, *numbers = words.task
        print(json.dumps(prepare(name, Path(folder)) if step == "prepare" else measure(name, Path(folder), *map(int, numbers))))
        return 0
    peers = [name for name in PEERS if importlib.util.find_spec(name)]
    contenders = [*(["before"] if words.before else []), "after", "open", "tensors", *peers]
    contenders = [name for name in contenders if not words.only or name in words.only]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        options = ["--count", str(words.images)] if words.source == "phantoms" else []
        where = [str(words.path)] if words.path else []
        shards = ["captions", words.source, *where, *options, "--output", str(folder / "shards"), "--samples-per-shard", "250"]
        make = "import sys; from m2i2.cli.make_shards import main; raise SystemExit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run([sys.executable, "-c", make, *shards], check=True, env=environment, stdout=subprocess.DEVNULL)
        for name in set(peers) & set(contenders):
            in_a_process(HERE, "--task", "prepare", name, place)
        rows: dict[tuple[str, int, int], list[Any]] = {}
        for _ in range(words.rounds):
            for operations in (0, 2):
                for workers in (0, words.workers):
                    for name in contenders if not operations else [n for n in contenders if n in ("before", "after")]:
                        tree = words.before.resolve() if name == "before" else HERE
                        task = map(str, (name, place, words.batch, workers, operations))
                        found = in_a_process(tree, "--task", "measure", *task)
                        rows.setdefault((name, operations, workers), []).append(found)
    print(f"{'':12}{'RandAugment':>12}{'workers':>9}{'images/s':>10}{'worst':>8}{'best':>8}{'MB of a worker':>16}")
    for (name, operations, workers), found in rows.items():
        rates = sorted(one["images_per_s"] for one in found)
        memory = max(one["worker_mb"] for one in found)
        rate = statistics.median(rates)
        print(f"{name:12}{operations:12}{workers:9}{rate:10.0f}{rates[0]:8.0f}{rates[-1]:8.0f}{memory:16.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
