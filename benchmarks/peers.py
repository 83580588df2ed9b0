"""What a loader does beside being fast, of this project and of its peers: a test of behaviour for each cell of a table.

    python benchmarks/peers.py      # webdataset, mosaicml-streaming, litdata, torchdata, spdl: whichever are installed
    python benchmarks/peers.py --only m2i2 torchdata

Each library reads the same stored JPEGs in its own format, as its documentation shows, shuffled, with 2 workers and a random crop,
in a process of its own. `benchmarks/loading.py` measures speed.

once       an epoch in batches that do not divide the data holds every sample once
order      stopped after 3 batches and resumed in another loader, the rest comes in the order of an epoch without a stop
pixels     ... and with the same crops
workers    order and pixels also with 1 worker after 2
ranks      2 ranks stop after 3 batches each, 1 rank goes on: every sample once in all
damage     of 8 copies with one bit flipped in the middle of an image, so many stop the epoch with an error
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, DistributedSampler

HERE = Path(__file__).resolve().parent.parent
PACKAGES = {
    "m2i2": "m2i2",
    "webdataset": "webdataset",
    "streaming": "mosaicml-streaming",
    "litdata": "litdata",
    "torchdata": "torchdata",
    "spdl": "spdl",
}
STORED = {name: name for name in PACKAGES} | {"m2i2": "shards", "webdataset": "shards", "torchdata": "files", "spdl": "files"}
"""The folder that a library reads."""
TESTS = ("once", "order", "pixels", "workers", "ranks", "damage")
BATCH, STOP, SIDE, FLIPS = 48, 3, 96, 8
Seen = list[tuple[str, str]]
"""(key, digest of the pixels) of samples, in order."""


def crop(encoded: bytes) -> torch.Tensor:
    """[3, SIDE, SIDE] uint8: a random crop, drawn from torch's global generator."""
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))).permute(2, 0, 1)
    top, left = (int(torch.randint(side - SIDE + 1, ())) for side in image.shape[1:])
    return image[:, top : top + SIDE, left : left + SIDE].contiguous()


def pair(sample: Any) -> tuple[str, torch.Tensor]:
    """What every peer hands out: {"key", "image"} -> key and pixels."""
    key = sample["key"]
    return key.decode() if isinstance(key, bytes) else key, crop(sample["image"])


def stacked(pairs: Iterable[tuple[str, torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    keys, images = zip(*pairs, strict=True)
    return list(keys), torch.stack(images)


class Files(Dataset[tuple[str, torch.Tensor]]):
    """Images as files: a data set for libraries that bring no format."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> tuple[str, torch.Tensor]:
        return self.files[item].stem, crop(self.files[item].read_bytes())


def m2i2(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    import m2i2.data

    options: dict[str, Any] = {"transform": crop, "decode": False, "text": lambda sample: sample.key, "rank": rank, "ranks": ranks}
    place = folder / "shards"
    return m2i2.data.open(
        place, "train", BATCH, collate=lambda pairs: stacked((key, image) for image, key in pairs), workers=workers, **options
    )


def webdataset(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    import webdataset as wds

    urls = [str(path) for path in sorted((folder / "shards").glob("train-*.tar"))]
    data = wds.WebDataset(urls, shardshuffle=100, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker, seed=0)
    data = data.shuffle(200).map(lambda sample: pair({"key": sample["__key__"], "image": sample["jpg"]}))
    return wds.WebLoader(data.batched(BATCH // ranks, collation_fn=stacked), batch_size=None, num_workers=workers)


def streaming(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    import streaming as mds

    mds.base.util.clean_stale_shared_memory()  # a second data set of a process may not use the first one's folder

    class Pairs(mds.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return pair(super().__getitem__(at))

    data = Pairs(local=str(folder / "streaming"), shuffle=True, batch_size=BATCH // ranks)
    return mds.StreamingDataLoader(data, batch_size=BATCH // ranks, num_workers=workers, collate_fn=stacked)


def litdata(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    import litdata as lit

    data = lit.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=False, transform=pair)
    return lit.StreamingDataLoader(data, batch_size=BATCH // ranks, num_workers=workers, collate_fn=stacked)


def torchdata(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = Files(folder / "files")
    options = {"sampler": DistributedSampler(data, ranks, rank)} if ranks > 1 else {"shuffle": True}
    return StatefulDataLoader(data, batch_size=BATCH // ranks, num_workers=workers, collate_fn=stacked, **options)


def spdl(folder: Path, workers: int, rank: int, ranks: int) -> Any:
    from spdl.pipeline import PipelineBuilder

    class Batches:
        def __iter__(self) -> Any:
            data = Files(folder / "files")
            builder = PipelineBuilder().add_source(iter(DistributedSampler(data, ranks, rank)))
            builder = (
                builder.pipe(data.__getitem__, concurrency=max(1, workers)).aggregate(BATCH // ranks).pipe(stacked).add_sink(2)
            )
            pipeline = builder.build(num_threads=max(1, workers))
            with pipeline.auto_stop():
                yield from pipeline.get_iterator()

    return Batches()


def prepare(name: str, folder: Path, images: list[tuple[str, bytes]]) -> None:
    """The images once more, as a peer wants them."""
    if name == "streaming":
        import streaming as mds

        with mds.MDSWriter(out=str(folder / name), columns={"key": "str", "image": "bytes"}, size_limit=1 << 18) as writer:
            for key, image in images:
                writer.write({"key": key, "image": image})
    elif name == "litdata":
        import litdata as lit

        items = [{"key": key.encode(), "image": image} for key, image in images]
        lit.optimize(dict, items, str(folder / name), chunk_bytes=1 << 18, num_workers=1)
    elif name in ("torchdata", "spdl"):
        (folder / "files").mkdir()
        for key, image in images:
            (folder / "files" / f"{key}.jpg").write_bytes(image)


def seen(batches: Iterable[Any]) -> Seen:
    return [
        (key, hashlib.sha256(image.numpy().tobytes()).hexdigest())
        for keys, images in batches
        for key, image in zip(keys, images, strict=True)
    ]


def opened(name: str, folder: Path, workers: int = 2, rank: int = 0, ranks: int = 1) -> Any:
    torch.manual_seed(0)
    return globals()[name](folder, workers, rank, ranks)


def counted(found: Seen, images: int) -> str:
    """Whether every sample came once."""
    counts = Counter(key for key, _ in found)
    again = sum(count - 1 for count in counts.values())
    return "yes" if len(counts) == images and not again else f"no: {images - len(counts)} missing, {again} again"


def once(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    return counted(seen(opened(name, folder)), len(images))


def resumed(name: str, folder: Path, workers: int) -> tuple[Seen, Seen]:
    """What comes after a stop, as it should be and as it is."""
    whole = seen(opened(name, folder))
    loader = opened(name, folder)
    if not hasattr(loader, "state_dict"):
        raise NotImplementedError("no state")
    reading = iter(loader)
    before = seen(islice(reading, STOP))
    state = loader.state_dict()
    del reading
    again = opened(name, folder, workers)
    again.load_state_dict(state)
    rest = seen(again)
    assert [key for key, _ in before] == [key for key, _ in whole[: len(before)]], "two epochs without a stop differ"
    return whole[len(before) :], rest


def order(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    whole, rest = resumed(name, folder, 2)
    return "yes" if [key for key, _ in rest] == [key for key, _ in whole] else "no"


def pixels(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    whole, rest = resumed(name, folder, 2)
    return "yes" if rest == whole else "no"


def workers(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    whole, rest = resumed(name, folder, 1)
    same = [key for key, _ in rest] == [key for key, _ in whole]
    return "yes" if rest == whole else "order only" if same else "no"


def ranks(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    """The two ranks are processes that talk over gloo."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--task", "rank", name, str(folder)]
    started = []
    for rank in range(2):
        env = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    for process in started:
        process.wait(300)
    if any(process.returncode for process in started):
        raise NotImplementedError("no state" if started[0].returncode == 3 else "an error in a rank")
    parts = [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]
    again = opened(name, folder)
    again.load_state_dict(parts[0]["state"])
    return counted([*parts[0]["seen"], *parts[1]["seen"], *seen(again)], len(images))


def one_rank(name: str, folder: Path) -> None:
    """What a rank of `ranks` reads before the stop."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loader = opened(name, folder, 2, rank, 2)
    if not hasattr(loader, "state_dict"):
        sys.exit(3)
    reading = iter(loader)
    before = seen(islice(reading, STOP))
    torch.save({"seen": before, "state": loader.state_dict()}, folder / f"{name}-{rank}.pt")
    dist.barrier()


def damage(name: str, folder: Path, images: list[tuple[str, bytes]]) -> str:
    noticed = 0
    for _, image in images[:: len(images) // FLIPS][:FLIPS]:
        own = [path for path in (folder / STORED[name]).iterdir() if image in path.read_bytes()]
        assert len(own) == 1, f"{len(own)} files of {name} hold the image"
        content = bytearray(own[0].read_bytes())
        place = content.index(image) + len(image) // 2
        content[place] ^= 1
        own[0].write_bytes(content)
        try:
            seen(opened(name, folder, 0))
        except Exception:
            noticed += 1
        content[place] ^= 1
        own[0].write_bytes(content)
    return f"{noticed} of {FLIPS}"


def task(name: str, folder: Path) -> dict[str, str]:
    """Every test of one library."""
    from m2i2.data.shards.split import ShardSplit

    torch.set_num_threads(1)
    stored = ShardSplit.open(folder / "shards", "train", "captions")
    samples = [stored.read(item) for item in range(len(stored))]
    images = [(sample.key, sample.image) for sample in samples]
    prepare(name, folder, images)
    found = {"version": "of this tree" if name == "m2i2" else importlib.metadata.version(PACKAGES[name])}
    for one in TESTS:
        test: Callable[..., str] = globals()[one]
        try:
            found[one] = test(name, folder, images)
        except NotImplementedError as e:
            found[one] = f"no: {e}"
        except Exception as e:
            traceback.print_exc()
            found[one] = f"no: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:60]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PACKAGES, help="libraries (default: all that are there)")
    parser.add_argument("--images", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--log", type=Path, help="a file for what the libraries print")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.task:
        step, name, folder = words.task
        print(json.dumps(task(name, Path(folder)) if step == "all" else one_rank(name, Path(folder))))
        return 0
    there = [name for name in PACKAGES if name == "m2i2" or importlib.util.find_spec(name)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))}
    with tempfile.TemporaryDirectory() as place:
        make = "import sys; from m2i2.cli.make_shards import main; raise SystemExit(main(sys.argv[1:]))"
        shards = ["captions", "phantoms", "--count", str(words.images), "--samples-per-shard", "50"]
        command = [sys.executable, "-c", make, *shards, "--output", f"{place}/data/shards"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        rows: dict[str, dict[str, str]] = {}
        for name in words.only or there:
            folder = Path(place) / name
            shutil.copytree(Path(place) / "data", folder)
            command = [sys.executable, __file__, "--task", "all", name, str(folder)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if words.log:
                words.log.open("a").write(f"{name}\n{done.stdout}\n{done.stderr}\n")
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            rows[name] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({name: rows[name]}), flush=True)
    heads = [f"{PACKAGES[name]} {row['version']}" for name, row in rows.items()]
    print("\n| | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for one in TESTS:
        print(f"| {one} | " + " | ".join(row[one] for row in rows.values()) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
