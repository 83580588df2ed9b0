"""Shards behind URLs: the same samples as from the folder, from servers that fail, through a cache that is bounded and shared."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2i2.cli.make_shards import main as make_shards
from m2i2.config import CacheConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.loading.sampling import Position, Share
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.tokenizer import Tokenizer, train_tokenizer
from m2i2.errors import M2I2Error
from tests.faults.shard_servers import ShardServer, s3_server
from tests.launching import launch, succeed

AUGMENTATION = Augmentation(size=32, crop_scale=(0.2, 1.0), flip=False, randaugment=(2, 7))
SHARDS = 12
FIRST = "train-000000.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 captioned images in 12 shards."""
    folder = tmp_path_factory.mktemp("shards") / "captions"
    words = ["--count", "48", "--samples-per-shard", "4", "--side", "64", "--workers", "1", "--output", str(folder)]
    assert make_shards(["captions", "phantoms", *words]) == 0
    assert len(ShardSplit.open(folder, "train", "captions").shards) == SHARDS
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer(ShardSplit.open(folder, "train", "captions").texts(), 300)


@pytest.fixture
def server(folder: Path) -> Iterator[ShardServer]:
    with ShardServer(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(cache_folder=str(tmp_path / "cache"), cache_gb=1, cache_attempts=2, cache_timeout=60)


def loader(
    place: str | Path,
    tokenizer: Tokenizer,
    cache: CacheConfig | None = None,
    share: Share | None = None,
    workers: int = 0,
    start: Position | None = None,
) -> Loader[CaptionBatch]:
    rows = CaptionRows(AUGMENTATION, tokenizer, 30, 32, 0.3, 16)
    corpus = Corpus.open([place], "train", "captions", cache)
    loader: Loader[Any] = Loader(corpus, rows, share or Share(8, 1, 0, 1), epochs=2, seed=5, window=2, workers=workers)
    loader.starting_at(start or Position())
    return loader


def same(ours: list[CaptionBatch], theirs: list[CaptionBatch]) -> bool:
    def values(batch: CaptionBatch) -> list[Any]:
        return [getattr(batch, field.name) for field in fields(batch)]

    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(values(one), values(other), strict=True)
    )


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_samples_are_those_of_the_folder(
    folder: Path, tokenizer: Tokenizer, server: ShardServer, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with s3_server(folder, monkeypatch) as s3:
        url = server.url if scheme == "http" else s3
        for ranks, workers in ((1, 0), (1, 2), (2, 2)):
            for rank in range(ranks):
                share = Share(8, 1, rank, ranks)
                whole = list(loader(folder, tokenizer, share=share))
                assert len(whole) == 12
                assert same(list(loader(url, tokenizer, cache, share, workers)), whole)
                in_the_middle = Position(1, 2)
                assert same(list(loader(url, tokenizer, cache, share, workers, in_the_middle)), whole[8:])
    if scheme == "http":
        shards = {file: count for file, count in server.requests.items() if file.endswith(".tar")}
        assert shards == dict.fromkeys(shards, 1) and len(shards) == SHARDS


def used(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def bounded(cache: CacheConfig, folder: Path, shards: float) -> CacheConfig:
    """A cache that holds so many shards, and the table of items."""
    split = ShardSplit.open(folder, "train", "captions")
    largest = max(shard.bytes for shard in split.shards)
    room = shards * largest + (folder / "train.items.npy").stat().st_size
    return CacheConfig(cache_folder=cache.cache_folder, cache_gb=room / 1e9, cache_attempts=2, cache_timeout=60)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_stays_within_its_bound(
    folder: Path, tokenizer: Tokenizer, server: ShardServer, cache: CacheConfig, workers: int
) -> None:
    small = bounded(cache, folder, 5)
    mine, largest, stop = Path(small.cache_folder), 0, threading.Event()
    mine.mkdir()
    (mine / "notes.txt").write_text("not the cache's")

    def watch() -> None:
        nonlocal largest
        while not stop.wait(0.001):
            largest = max(largest, used(mine))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        share = Share(2, 1, 0, 1)
        assert same(list(loader(server.url, tokenizer, small, share, workers)), list(loader(folder, tokenizer, share=share)))
    finally:
        stop.set()
        watcher.join()
    assert largest <= small.cache_gb * 1e9 + 20
    assert largest > small.cache_gb * 1e9 / 2
    shards = sum(count for file, count in server.requests.items() if file.endswith(".tar"))
    assert SHARDS < shards <= 2 * SHARDS + 4, server.requests
    assert (mine / "notes.txt").exists()


def test_a_cache_that_cannot_hold_two_windows_is_refused(
    folder: Path, tokenizer: Tokenizer, server: ShardServer, cache: CacheConfig
) -> None:
    with pytest.raises(M2I2Error, match=r"data\.cache_gb=.* is too little: two windows of data\.window=2 shards"):
        loader(server.url, tokenizer, bounded(cache, folder, 3))


def read_all(url: str, tokenizer: Tokenizer, cache: CacheConfig, rank: int, results: Any) -> None:
    results.put([batch.item.tolist() for batch in loader(url, tokenizer, cache, Share(8, 1, rank, 2), workers=1)])


def test_processes_share_what_one_of_them_fetched(
    folder: Path, tokenizer: Tokenizer, server: ShardServer, cache: CacheConfig
) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=(server.url, tokenizer, cache, rank, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    expected = [[batch.item.tolist() for batch in loader(folder, tokenizer, share=Share(8, 1, rank, 2))] for rank in range(2)]
    assert sorted(found) == sorted(expected)
    shards = {file: count for file, count in server.requests.items() if file != "index.json"}
    assert shards == dict.fromkeys(shards, 1) and len(shards) == SHARDS + 1


def test_who_waits_for_a_file_that_another_goes_on_using_does_not_wait_for_ever(server: ShardServer, cache: CacheConfig) -> None:
    server.faults["train.items.npy"] = ["slow"]  # both ask for the table while it is coming, and keep it
    opened: list[ShardSplit] = []
    openers = [
        threading.Thread(target=lambda: opened.append(ShardSplit.open(server.url, "train", "captions", cache)), daemon=True)
        for _ in range(2)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(300)
    assert len(opened) == 2
    assert server.requests["train.items.npy"] == 1


def test_what_comes_next_is_fetched_ahead(folder: Path, tokenizer: Tokenizer, server: ShardServer, cache: CacheConfig) -> None:
    remote = loader(server.url, tokenizer, cache)
    batches = iter(remote)
    next(batches)
    order = remote.sampler.order
    due = [remote.corpus.shards[n][1].file for n in order.shards(0, 0)]
    end = time.monotonic() + 3000
    while sum(server.requests[file] for file in due) < SHARDS:
        assert time.monotonic() < end
        time.sleep(0.01)
    # the two shards of the first window are fetched by the reader or its thread, depending on which comes first
    assert [file for file in server.requests if file in due[2:]] == due[2:]


@pytest.mark.parametrize("change", ["a flipped byte", "a missing end", "zeros"])
def test_a_damaged_file_of_the_cache_comes_anew(folder: Path, server: ShardServer, cache: CacheConfig, change: str) -> None:
    split = ShardSplit.open(server.url, "train", "captions", cache)
    sample = split.read(0)
    path = Path(cache.cache_folder) / split.shards[0].sha256
    content = bytearray(path.read_bytes())
    content[int(split.items[0]["image_offset"]) + 9] ^= 1
    path.write_bytes({"a flipped byte": content, "a missing end": content[:-7], "zeros": bytes(len(content))}[change])
    assert split.read(0) == sample == ShardSplit.open(folder, "train", "captions").read(0)
    assert server.requests[FIRST] == 2
    table = Path(cache.cache_folder) / json.loads((folder / "index.json").read_text())["splits"]["train"]["items_sha256"]
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    assert ShardSplit.open(server.url, "train", "captions", cache).read(0) == sample
    assert server.requests["train.items.npy"] == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("stall", "imeout"),
        ("reset", ""),
        ("cut off", ""),
        ("wrong bytes", "do not match the hash"),
        ("too short", "do not match the hash"),
        ("too long", "more bytes came than the"),
        ("503", "the server answered 503"),
        ("429", "the server answered 429"),
    ],
)
def test_faults_are_tried_again_and_named_when_they_stay(
    folder: Path, server: ShardServer, cache: CacheConfig, capfd: pytest.CaptureFixture[str], fault: str, says: str
) -> None:
    impatient = replace(cache, cache_timeout=2 if fault == "stall" else 60)
    split = ShardSplit.open(server.url, "train", "captions", impatient)
    server.faults[FIRST] = [fault]
    assert split.read(0) == ShardSplit.open(folder, "train", "captions").read(0)
    assert server.requests[FIRST] == 2
    told = capfd.readouterr().err
    assert f"{server.url}/{FIRST}: " in told and says in told and "attempt 1 of 2 failed" in told
    second = split.shards[1].file
    server.faults[second] = [fault + "*"]
    with pytest.raises(M2I2Error) as error:
        split.read(int(split.shard_items[0]))
    assert str(error.value).startswith(f"{server.url}/{second} cannot be fetched after 2 attempts: ") and says in str(error.value)
    assert "\n" not in str(error.value)
    assert server.requests[second] == 2
    assert not list(Path(cache.cache_folder).glob("*.partial"))


@pytest.mark.parametrize(("fault", "says"), [("404", "it is not there"), ("403", "the server answered 403")])
def test_what_cannot_succeed_is_not_tried_again(server: ShardServer, cache: CacheConfig, fault: str, says: str) -> None:
    split = ShardSplit.open(server.url, "train", "captions", cache)
    server.faults[FIRST] = [fault]
    with pytest.raises(M2I2Error, match=rf"{FIRST} cannot be fetched: {says}"):
        split.read(0)
    assert server.requests[FIRST] == 1


def test_missing_objects_of_s3(folder: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / FIRST).unlink()
    with s3_server(tmp_path / "part", monkeypatch) as url:
        split = ShardSplit.open(url, "train", "captions", cache)
        with pytest.raises(M2I2Error, match=f"{url}/{FIRST} cannot be fetched: it is not there"):
            split.read(0)
        with pytest.raises(M2I2Error, match=r"/elsewhere/index\.json cannot be fetched: it is not there"):
            ShardSplit.open(url.replace("a/folder", "elsewhere"), "train", "captions", cache)
        with pytest.raises(M2I2Error, match=r"s3://nowhere/a/index\.json cannot be fetched"):
            ShardSplit.open("s3://nowhere/a", "train", "captions", cache)


def read_first(url: str, cache: CacheConfig) -> None:
    ShardSplit.open(url, "train", "captions", cache).read(0)


def test_a_killed_process_leaves_nothing_that_hinders(folder: Path, server: ShardServer, cache: CacheConfig) -> None:
    patient = CacheConfig(cache_folder=cache.cache_folder, cache_timeout=60)
    server.faults[FIRST] = ["stall"]
    process = multiprocessing.get_context("fork").Process(target=read_first, args=(server.url, patient))
    process.start()
    end = time.monotonic() + 300
    while not server.requests[FIRST]:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert list(Path(cache.cache_folder).glob("*.partial"))
    split = ShardSplit.open(server.url, "train", "captions", cache)
    assert split.read(0) == ShardSplit.open(folder, "train", "captions").read(0)
    assert not list(Path(cache.cache_folder).glob("*.partial"))


def test_a_full_disk_is_named(tokenizer: Tokenizer, server: ShardServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can be mounted by root only: {mounted.stderr.strip()}")
    try:
        with pytest.raises(M2I2Error, match=rf"The disk of the cache {disk}/cache is full .* data\.cache_folder"):
            list(loader(server.url, tokenizer, CacheConfig(cache_folder=f"{disk}/cache"), workers=1))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "local:///etc",
        "pipe://cat x",
        "python://x/y",
        "reference://x/y",
        "memory://x",
        "simplecache::http://127.0.0.1/x",
        "zip://a::http://127.0.0.1/x.zip",
        "http://a/b::file:///etc",
        "http://user:secret@127.0.0.1/x",
        "http://user:secret@127.0.0.1/x?a=1",
        "zip://user:secret@x",
        "http://[127.0.0.1/x",
        "http:///x",
        "http://127.0.0.1/x?signature=1",
        "s3://bucket/*",
        "S3://bucket/a",
    ],
)
def test_urls_that_are_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_shards(["verify", url]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "secret" not in told


@pytest.mark.parametrize(
    ("name", "value"), [("file", "a?b.tar"), ("file", "a::b.tar"), ("sha256", "../../x"), ("sha256", ""), ("bytes", 1 << 50)]
)
def test_indexes_that_reach_out_are_refused(folder: Path, tmp_path: Path, cache: CacheConfig, name: str, value: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0][name] = value
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    shutil.copy(folder / "train.items.npy", tmp_path / "data")
    with ShardServer(tmp_path / "data") as server, pytest.raises(M2I2Error, match=r"build the shards|rename it|has no room"):
        ShardSplit.open(server.url, "train", "captions", cache).read(0)


def test_verify_of_a_url(server: ShardServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_shards(["verify", server.url]) == 0
    assert "every hash and member in order" in capsys.readouterr().out
    server.faults[FIRST] = ["404"]
    assert make_shards(["verify", server.url]) == 2
    told = capsys.readouterr().err
    assert f"fault: {FIRST}: cannot be read ({server.url}/{FIRST} cannot be fetched: it is not there" in told
    assert "has 1 fault(s)" in told


SETTINGS = [
    *("--preset", "tiny", "--output", "run", "training.precision=float32", "training.batch=16", "training.log_every=1"),
    *("training.max_steps=4", "objectives.queue=40", "vision.image_size=64", "data.window=3", "data.cache_folder=cache"),
]


def losses(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [[row[name] for name in ("step", "loss", "mim", "mlm", "itm", "itc")] for row in rows]


def test_two_ranks_train_from_urls_as_from_the_folder(
    folder: Path, server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(folder, monkeypatch) as s3:
        places = {"folder": str(folder), "http": server.url, "s3": s3}
        for name, place in places.items():
            (tmp_path / name).mkdir()
            succeed("pretrain", ["--shards", place, *SETTINGS], tmp_path / name, 2)
    assert len(losses(tmp_path / "folder")) == 4
    assert losses(tmp_path / "http") == losses(tmp_path / "folder")
    assert losses(tmp_path / "s3") == losses(tmp_path / "folder")
    assert max(count for file, count in server.requests.items() if file.endswith(".tar")) == 1
    assert not (tmp_path / "folder" / "cache").exists()


def test_a_store_that_fails_ends_a_run_in_one_paragraph(
    folder: Path, tokenizer: Tokenizer, server: ShardServer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    for number in range(SHARDS):
        server.faults[f"train-{number:06d}.tar"] = ["503*"]
    words = ["--shards", server.url, *SETTINGS, "start.tokenizer=tokenizer", "data.cache_attempts=2"]
    done = launch("pretrain", words, tmp_path)
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert f"{server.url}/train-" in error and "cannot be fetched after 2 attempts: the server answered 503" in error
    assert "Traceback" not in done.stderr
