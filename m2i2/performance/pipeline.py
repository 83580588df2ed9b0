"""The data's side: augmented rows per second of one core, shard building with one and two workers, and very large indices."""

import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2i2.config import DataConfig
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.order import Order
from m2i2.data.loading.randomness import sample_generator
from m2i2.data.records import Source
from m2i2.data.shards.building import Encoding, build
from m2i2.data.shards.split import FORMAT, ITEM
from m2i2.data.shards.storage import INDEX, Shard
from m2i2.errors import M2I2Error
from m2i2.objectives.itc import itc_loss
from m2i2.performance.measuring import peak_memory_mb
from m2i2.terminal import say

Opening = Callable[[], Source]


def time_augmentation(opening: Opening, options: dict[str, Any], size: int, side: int, rounds: int) -> dict[str, Any]:
    """Images per second that one core reads from shards, decodes and augments as the official code does, without flips."""
    torch.set_num_threads(1)
    data = DataConfig()
    augmentation = Augmentation(size=size, crop_scale=data.crop_scale, flip=False, randaugment=data.randaugment)
    with tempfile.TemporaryDirectory() as folder:
        report = build(opening(), Path(folder) / "shards", Encoding(side=side), options=options, workers=2)
        rates = []
        splits = [Corpus.open([Path(folder) / "shards"], split, "captions") for split in report.splits]
        for number in range(rounds + 1):
            images, start = 0, time.process_time()
            for corpus in splits:
                for item in range(len(corpus)):
                    sample = corpus.read(item)
                    augmentation(sample.image, sample_generator(0, number, item), sample.key)
                    images += 1
            rates.append(images / (time.process_time() - start))
    return {
        "images": images,
        "image_size": size,
        "side": side,
        "rounds": rounds,
        "images_per_s_per_core": statistics.median(rates[1:]),
    }


def time_building(opening: Opening, options: dict[str, Any], side: int, rounds: int) -> dict[str, Any]:
    """Seconds of building shards with one worker and with two, alternately, and the gain."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    report = None
    for _ in range(rounds):
        for workers, found in seconds.items():
            folder = Path(tempfile.mkdtemp())
            try:
                start = time.perf_counter()
                report = build(opening(), folder / "shards", Encoding(side=side), options=options, workers=workers)
                found.append(time.perf_counter() - start)
            finally:
                shutil.rmtree(folder)
    assert report is not None
    one, two = (statistics.median(found) for found in seconds.values())
    images = sum(split["samples"] for split in report.splits.values())
    return {
        "images": images,
        "seconds_1_worker": one,
        "seconds_2_workers": two,
        "images_per_s_2_workers": images / two,
        "speedup": one / two,
    }


def growth_of_queue(sizes: tuple[int, ...], width: int = 256, rows: int = 8) -> dict[str, float]:
    """Milliseconds of the contrast (forward and backward) against queues of ``sizes``."""
    found = {}
    for size in sizes:
        image, text = (torch.randn(rows, width, requires_grad=True) for _ in range(2))
        keys = [torch.nn.functional.normalize(torch.randn(rows + size, width), dim=1) for _ in range(2)]
        own, temperature, timings = torch.arange(rows), torch.full((1,), 0.07, requires_grad=True), []
        images, texts = ((part[:rows], part[rows:]) for part in keys)
        for _ in range(4):
            start = time.perf_counter()
            itc_loss(image, text, images, texts, own, temperature, 0.4, None).loss.backward()
            timings.append(1000 * (time.perf_counter() - start))
        found[str(size)] = statistics.median(timings[1:])
    return found


def growth_of_index(samples: int, shards: int) -> dict[str, float]:
    """Opening a folder and its order in a process of its own: start-up, a step anywhere, resident memory.

    The folder is as large as the numbers say, but its files are holes: what start-up reads is there, what it must not read
    would be zeros.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_holes(Path(folder), samples, shards)
        command = [sys.executable, "-m", "m2i2.performance.pipeline", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise M2I2Error(f"Measuring an index of {samples} samples failed: {done.stderr.strip()[-500:]}")
    row: dict[str, float] = json.loads(done.stdout)
    return row


def _write_holes(folder: Path, samples: int, shards: int) -> None:
    """A folder of caption shards with an index and a table of that many samples, all files of which are holes."""
    rows = []
    for number in range(shards):
        mine = samples // shards + (number < samples % shards)
        shard = Shard(f"train-{number:06d}.tar", mine, mine, 100_000 * mine, f"{number:064x}")
        with (folder / shard.file).open("wb") as f:
            f.truncate(shard.bytes)
        rows.append(asdict(shard))
    np.lib.format.open_memmap(folder / "train.items.npy", mode="w+", dtype=ITEM, shape=(samples,))
    split = {"items_sha256": "0" * 64, "shards": rows}
    index = {"format": FORMAT, "kind": "captions", "source": "holes", "fingerprint": "0" * 64, "splits": {"train": split}}
    (folder / INDEX).write_text(json.dumps(index))


def _measure_index(folder: str) -> dict[str, float]:
    before = peak_memory_mb()
    start = time.perf_counter()
    corpus = Corpus.open([folder], "train", "captions")
    opened = time.perf_counter() - start
    samples = len(corpus)
    order = Order(corpus.shard_items, corpus.fingerprint, seed=0, window=16)
    order.items(0, 0, 32)
    started = time.perf_counter() - start
    sent = len(pickle.dumps(order))
    start = time.perf_counter()
    resumed = Order(corpus.shard_items, corpus.fingerprint, seed=0, window=16)
    resumed.items(3, samples // 2, samples // 2 + 32)
    resume = time.perf_counter() - start
    steps = []
    for step in range(1, min(400, samples // 32)):
        start = time.perf_counter()
        order.items(0, 32 * step, 32 * step + 32)
        steps.append(1e6 * (time.perf_counter() - start))
    return {
        "samples": samples,
        "shards": len(corpus.shards),
        "open_s": opened,
        "start_s": started,
        "resume_s": resume,
        "step_us": statistics.median(steps),
        "sent_to_workers_mb": sent / 1e6,
        "memory_mb": peak_memory_mb() - before,
        "process_mb": peak_memory_mb(),
    }


if __name__ == "__main__":
    say(json.dumps(_measure_index(sys.argv[1])))
