"""The loader as a library: raw pairs, exactly once, the same order and pixels after a stop, used as a DataLoader is."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import m2i2.data
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.images.transforms import Augmentation, EvaluationTransform
from m2i2.data.loading.order import Order
from m2i2.data.loading.sampling import EpochSampler
from m2i2.data.shards.split import Sample, ShardSplit
from m2i2.errors import M2I2Error
from tests.conftest import ROOT
from tests.distributed.processes import on_ranks

COUNT = 37


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for kind in ("captions", "vqa"):
        words = ["--count", str(COUNT), "--samples-per-shard", "5", "--side", "32", "--workers", "1"]
        assert make_shards([kind, "phantoms", "--output", str(folder / kind), *words]) == 0
    return folder


def key(sample: Sample) -> str:
    return sample.key


def crop(image: Image.Image) -> torch.Tensor:
    """A random crop that draws from every global generator, as transforms of other libraries do."""
    left, top = int(torch.randint(16, ())), int(np.random.randint(16))  # noqa: NPY002
    pixels = torch.from_numpy(np.array(image))[top : top + 16, left : left + 16]
    return pixels.flip(1) if random.random() < 0.5 else pixels


def both(pairs: list[Any]) -> tuple[list[str], torch.Tensor]:
    return [text for _, text in pairs], torch.stack([image for image, _ in pairs])


def opened(folder: Path, **options: Any) -> m2i2.data.SampleLoader:
    options = {"batch": 8, "transform": crop, "text": key, "collate": both, "seed": 5, **options}
    return m2i2.data.open(folder / "captions", "train", **options)


def read(loader: Any) -> list[tuple[str, bytes]]:
    """(key, pixels) of every sample of an iteration."""
    return [(k, pixels.numpy().tobytes()) for keys, images in loader for k, pixels in zip(keys, images, strict=True)]


@given(
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    ranks=st.integers(1, 5),
    share=st.integers(1, 6),
    start=st.integers(0, 80),
    drop_last=st.booleans(),
)
def test_ranks_share_out_every_position_once(shards: list[int], ranks: int, share: int, start: int, drop_last: bool) -> None:
    total, batch = sum(shards), ranks * share
    start = min(start, total)
    options = {"order": Order(np.array(shards), "data", 0, 2), "batch": batch, "ranks": ranks, "drop_last": drop_last}
    if total < (batch if drop_last else ranks) or (not drop_last and 0 < total - start < ranks):
        with pytest.raises(M2I2Error, match=r"samples"):
            EpochSampler(rank=0, start=start, **options)
        return
    samplers = [EpochSampler(rank=rank, start=start, **options) for rank in range(ranks)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])} == {len(list(samplers[0].ends()))}
    sizes = [[len(part[number]) for part in parts] for number in range(len(parts[0]))]
    assert all(max(size) - min(size) <= 1 and min(size) for size in sizes)
    assert all(sum(size) == batch for size in sizes[:-1])
    seen = [entry[1] for number in range(len(parts[0])) for part in parts for entry in part[number]]
    wanted = (total - start) // batch * batch if drop_last else total - start
    assert seen == samplers[0].order.items(0, start, start + wanted).tolist()


def test_pairs_are_raw(folder: Path) -> None:
    stored = ShardSplit.open(folder / "captions", "train", "captions")
    captions = {caption for item in range(COUNT) for caption in stored.read(item).captions}
    images = {stored.read(item).image for item in range(COUNT)}
    pairs = [pair for batch in m2i2.data.open(folder / "captions", "train", 8) for pair in batch]
    assert len(pairs) == COUNT
    assert all(image.mode == "RGB" and image.size == (32, 32) and text in captions for image, text in pairs)
    encoded = [image for batch in m2i2.data.open(str(folder / "captions"), "train", 8, decode=False) for image, _ in batch]
    assert set(encoded) == images
    asked = [q.question for q in ShardSplit.open(folder / "vqa", "train", "vqa").questions()]
    given = [text for batch in m2i2.data.open(folder / "vqa", "train", 8) for _, text in batch]
    assert Counter(given) == Counter((q.question, q.answer) for q in asked)


def test_stored_order_and_several_folders(folder: Path) -> None:
    stored = ShardSplit.open(folder / "captions", "train", "captions")
    keys = [stored.read(item).key for item in range(COUNT)]
    assert [k for k, _ in read(opened(folder, shuffle=False))] == keys
    two = m2i2.data.open([folder / "captions", folder / "captions"], "train", 8, text=key)
    assert Counter(text for batch in two for _, text in batch) == Counter(keys * 2)


@pytest.mark.parametrize("transform", [Augmentation(size=16, crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 7)), crop])
def test_order_and_pixels_survive_a_stop_other_workers_and_other_ranks(folder: Path, transform: Callable[..., Any]) -> None:
    loader = opened(folder, transform=transform)
    whole, following = read(loader), read(loader)
    assert sorted(k for k, _ in whole) == sorted(k for k, _ in following) and len(dict(whole)) == COUNT
    assert [k for k, _ in whole] != [k for k, _ in following] and len(set(whole) & set(following)) < 4
    first = opened(folder, transform=transform, workers=2)
    reading = iter(first)
    before = read(islice(reading, 2))
    state = json.loads(json.dumps(first.state_dict()))
    del reading
    assert before == whole[:16] and state["samples"] == 16
    for ranks, batch, workers in ((1, 8, 0), (2, 8, 2), (3, 12, 0)):
        found: list[Any] = []
        parts = []
        for rank in range(ranks):
            loader = opened(folder, transform=transform, batch=batch, rank=rank, ranks=ranks, workers=workers)
            loader.load_state_dict(state)
            parts.append(list(loader))
            assert [k for k, _ in read(islice(loader, 1))] == [k for k, _ in following[rank * batch // ranks :][: batch // ranks]]
        for shares in zip(*parts, strict=True):
            found += read(shares)
        assert found == whole[16:]


def keys_of_rank(rank: int, ranks: int, folder: Path) -> list[list[str]]:
    return [keys for keys, _ in opened(folder)]


def test_ranks_are_those_of_torch_distributed(folder: Path) -> None:
    whole = [keys for keys, _ in opened(folder)]
    first, second = on_ranks(2, keys_of_rank, folder)
    assert [one + other for one, other in zip(first, second, strict=True)] == whole and len(first[0]) == 4


def test_the_users_random_numbers_are_left_alone(folder: Path) -> None:
    def after(transform: Any) -> tuple[float, ...]:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        assert len(list(m2i2.data.open(folder / "captions", "train", 8, transform=transform))) == 5
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    assert after(crop) == after(None)


def damage(folder: Path, item: int) -> str:
    """Flip one bit in the middle of an image; returns the sample's key."""
    split = ShardSplit.open(folder, "train", "captions")
    name, row = split.read(item).key, split.items[item]
    path = folder / split.shards[int(row["shard"])].file
    data = bytearray(path.read_bytes())
    data[int(row["image_offset"]) + int(row["image_size"]) // 2] ^= 1
    path.write_bytes(data)
    return name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_bit_raises_or_is_substituted(folder: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(folder / "captions", tmp_path / "captions")
    name = damage(tmp_path / "captions", 11)
    whole = read(opened(folder))
    loader = opened(tmp_path, workers=workers)
    with pytest.raises(M2I2Error, match=r"train-000002\.tar holds damaged bytes at offset \d+"):
        read(loader)
    place = [k for k, _ in whole].index(name)
    assert loader.state_dict()["samples"] == place // 8 * 8
    loader = opened(tmp_path, damage="substitute", workers=workers)
    with pytest.warns(UserWarning, match=r"holds damaged bytes .* Another sample stands in its place"):
        found = read(loader)
    assert [number for number, reason in loader.unreadable if "damaged bytes" in reason] == [11]
    assert len(found) == COUNT and [i for i in range(COUNT) if found[i] != whole[i]] == [place]
    assert found[place][0] in {k for k, _ in whole} - {name}


def test_it_is_used_as_a_data_loader_is(folder: Path) -> None:
    loader = m2i2.data.open(folder / "captions", "train", 8, transform=EvaluationTransform(size=16), collate=default_collate)
    assert (len(loader), loader.batch_size, len(loader.dataset)) == (5, 8, COUNT)
    for epoch in range(2):
        for number, (images, texts) in enumerate(loader):
            assert images.shape == (len(texts), 3, 16, 16) and len(texts) == (8 if number < 4 else 5)
        assert (number, loader.epoch) == (4, epoch)
    assert next(iter(loader))[1] != next(iter(loader))[1], "each iteration is another epoch"
    loader.set_epoch(0)
    again = next(iter(loader))[1]
    loader.set_epoch(0)
    assert next(iter(loader))[1] == again
    plain = DataLoader(loader.dataset, batch_size=8, shuffle=True, num_workers=2)
    assert sum(len(texts) for _, texts in plain) == COUNT
    assert len(list(loader.dataset)) == COUNT and loader.dataset[-1][1] == loader.dataset[COUNT - 1][1]
    assert len(list(opened(folder, drop_last=True))) == len(opened(folder, drop_last=True)) == 4


def test_training_resumes_as_loops_are_written(folder: Path) -> None:
    """A loop over epochs with set_epoch, stopped after a batch or between epochs, and started again."""

    def train(stop: int, state: Any = None) -> tuple[list[Any], Any]:
        loader, seen = opened(folder), []
        if state:
            loader.load_state_dict(state)
        for epoch in range(loader.epoch, 3):
            loader.set_epoch(epoch)
            for keys, _ in loader:
                seen.append((epoch, keys))
                if len(seen) == stop:
                    return seen, loader.state_dict()
        return seen, loader.state_dict()

    whole, _ = train(100)
    assert len(whole) == 15
    for stop in (3, 5, 14):
        before, state = train(stop)
        assert before + train(100, state)[0] == whole


def test_an_iteration_that_is_not_the_newest_moves_nothing(folder: Path) -> None:
    loader = opened(folder)
    older, newer = iter(loader), iter(loader)
    next(newer)
    state = loader.state_dict()
    assert (state["epoch"], state["samples"]) == (1, 8)
    next(older)
    assert loader.state_dict() == state


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    def refused(match: str, *places: str, **options: Any) -> None:
        with pytest.raises(M2I2Error, match=match):
            m2i2.data.open([folder / place for place in places or ("captions",)], **{"split": "train", "batch": 8, **options})

    refused(r"damage='ignore' is neither", damage="ignore")
    refused(r"batch=10 does not divide by 4 ranks", batch=10, rank=0, ranks=4)
    refused(r"rank=1 and ranks=None belong together", rank=1)
    refused(r"rank=4 must lie between 0 and ranks - 1 = 3", rank=4, ranks=4)
    refused(r"holds 37 samples; a batch of all ranks needs 64", batch=64, drop_last=True)
    refused(r"has no split 'validate'", split="validate")
    refused(r"cannot be read together: .*captions \(captions\), .*vqa \(vqa\)", "captions", "vqa")
    loader = opened(folder)
    for change, match in (
        ({"seed": 6}, r"saved with seed=6, this loader has seed=5"),
        ({"data": "x"}, r"saved with data='x'"),
        ({"samples": 38}, r"samples=38; an epoch has 37"),
    ):
        with pytest.raises(M2I2Error, match=match):
            loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(M2I2Error, match=r"lacks 'data'"):
        loader.load_state_dict({"epoch": 0})
    late = opened(folder, batch=12, rank=0, ranks=12)
    with pytest.raises(M2I2Error, match=r"5 samples of epoch 0 are left, fewer than 12 ranks"):
        late.load_state_dict({**late.state_dict(), "samples": 32})


def test_it_works_where_the_models_requirements_are_missing(folder: Path) -> None:
    script = f"""
import sys
for missing in ("deepspeed", "timm", "transformers", "tokenizers", "torchvision", "webdataset", "submitit"):
    sys.modules[missing] = None
import m2i2.data
for kind in ("captions", "vqa"):
    print(sum(len(batch) for batch in m2i2.data.open({str(folder)!r} + "/" + kind, "train", batch=8, workers=1)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    questions = len(ShardSplit.open(folder / "vqa", "train", "vqa"))
    assert done.stdout.split() == [str(COUNT), str(questions)], done.stderr[-2000:]
