"""The reader of shards: opening is cheap, reading is checked, and no damaged file ends in anything but M2I2Error."""

import json
import multiprocessing
import pickle
import resource
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.make_shards import main
from m2i2.data.shards.split import ITEM, ShardSplit
from m2i2.errors import M2I2Error


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eight captioned images in four shards of the split train."""
    data = tmp_path / "data"
    data.mkdir()
    records = []
    for i in range(8):
        Image.new("RGB", (40, 40), (30 * i, 0, 0)).save(data / f"{i}.png")
        records.append({"image": f"{i}.png", "caption": f"caption {i}"})
    (data / "pairs.json").write_text(json.dumps(records))
    words = ["--output", str(tmp_path / "shards"), "--side", "32", "--samples-per-shard", "2", "--workers", "1"]
    assert main(["captions", "json", str(data / "pairs.json"), *words]) == 0
    return tmp_path / "shards"


DIGEST = b"0" * 64


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def first(index: dict[str, Any]) -> dict[str, Any]:
    return index["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: first(i).update(items=10**30), "damaged"),
        (lambda i: first(i).update(items=1.5), "damaged"),
        (lambda i: first(i).update(bytes=-1), "damaged"),
        (lambda i: first(i).update(bytes=first(i)["bytes"] + 512), "truncated or the index is stale"),
        (lambda i: first(i).update(items=3), "do not belong together"),
        (lambda i: first(i).update(file="../train-000000.tar"), "not a valid name of a shard"),
        (lambda i: first(i).update(file="pipe:cat x.tar"), "not a valid name of a shard"),
        (lambda i: first(i).update(file="a\0-000000.tar"), "not a valid name of a shard"),
        (lambda i: first(i).update(more=1), "damaged"),
        (lambda i: i["splits"].update({"../train": i["splits"]["train"]}), "not a valid name of a split"),
        (lambda i: i.update(kind="weights"), "damaged"),
        (lambda i: i.update(format=99), "has format 99"),
        (lambda i: i.pop("fingerprint"), "damaged"),
        (lambda i: i["splits"]["train"].pop("items_sha256"), "damaged"),
    ],
)
def test_damaged_indexes(shards: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change_index(shards, change)
    with pytest.raises(M2I2Error, match=message):
        ShardSplit.open(shards, "train", "captions")


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("((("),
        npy("{'descr': '<u4', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}"),
        npy("{'descr': '<u4', 'fortran_order': False, 'shape': (-5,)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (8,)}"),
        npy("{'descr': '<u4', 'fortran_order': False, 'shape': (0,)}"),
        pickle.dumps([1, 2]),
        b"PK\x03\x04 an archive",
    ],
)
def test_damaged_tables(shards: Path, content: bytes) -> None:
    (shards / "train.items.npy").write_bytes(content)
    with pytest.raises(M2I2Error, match=r"train\.items\.npy"):
        ShardSplit.open(shards, "train", "captions")


def test_a_table_with_more_behind_it(shards: Path) -> None:
    with (shards / "train.items.npy").open("ab") as f:
        f.write(bytes(32))
    with pytest.raises(M2I2Error, match="its size is not the one in its header"):
        ShardSplit.open(shards, "train", "captions")


@pytest.mark.parametrize("field", ["shard", "image_offset", "text_offset", "image_size", "text_size"])
def test_places_outside_the_shards(shards: Path, field: str) -> None:
    items = np.load(shards / "train.items.npy")
    items[field][3] = np.iinfo(items[field].dtype).max
    np.save(shards / "train.items.npy", items)
    split = ShardSplit.open(shards, "train", "captions")
    assert split.read(2).captions == ("caption 2",)
    with pytest.raises(M2I2Error, match="points outside its shards"):
        split.read(3)


def replace_text(folder: Path, item: int, text: bytes) -> None:
    """Give an item another text of the same size, with the right checksum."""
    items = np.load(folder / "train.items.npy")
    path, start, size = folder / "train-000000.tar", int(items["text_offset"][item]), int(items["text_size"][item])
    content, text = path.read_bytes(), text[:size].ljust(size)
    path.write_bytes(content[:start] + text + content[start + size :])
    items["text_crc32"][item] = zlib.crc32(text)
    np.save(folder / "train.items.npy", items)


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_flipped_byte_is_found_when_it_is_read(shards: Path, which: str) -> None:
    split = ShardSplit.open(shards, "train", "captions")
    path = shards / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[int(split.items[0][f"{which}_offset"]) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(M2I2Error, match=rf"train-000000\.tar holds damaged bytes at offset .* \(the {which} of a sample\)"):
        split.read(0)
    assert split.read(1).captions == ("caption 1",)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 60,
        b"\xff",
        b"[]",
        b"{}",
        b'{"key":1,"image_sha256":"' + DIGEST + b'","captions":["a"],"metadata":{}}',
        b'{"key":"","image_sha256":"' + DIGEST + b'","captions":[5],"metadata":{}}',
        b'{"key":"","image_sha256":"' + DIGEST + b'","captions":[],"metadata":{}}',
        b'{"key":"","image_sha256":"' + DIGEST + b'","captions":"a","metadata":{}}',
        b'{"key":"","image_sha256":"' + DIGEST + b'","captions":["a"],"metadata":[]}',
        b'{"key":"","image_sha256":"' + DIGEST + b'","captions":["a"],"metadata":{"a":1}}',
    ],
)
def test_damaged_texts(shards: Path, text: bytes) -> None:
    replace_text(shards, 0, text)
    split = ShardSplit.open(shards, "train", "captions")
    for read in (lambda: split.read(0), lambda: list(split.texts())):
        with pytest.raises(M2I2Error, match=r"Item 0 of .*train-000000\.tar has a damaged text"):
            read()
    assert split.read(1).captions == ("caption 1",)


def test_damaged_questions(tmp_path: Path) -> None:
    assert main(["vqa", "phantoms", "--count", "4", "--output", str(tmp_path / "s"), "--workers", "1"]) == 0
    split = ShardSplit.open(tmp_path / "s", "train", "vqa")
    row = split.items[0]
    start, size = int(row["text_offset"]), int(row["text_size"])
    good = json.loads((tmp_path / "s" / split.shards[0].file).read_bytes()[start : start + size])
    for change in ({"closed": "yes"}, {"answer": 5}, {"metadata": []}, {"extra": "x"}):
        broken = {**good, "questions": [good["questions"][0] | change]}
        replace_text(tmp_path / "s", 0, json.dumps(broken).encode())
        split = ShardSplit.open(tmp_path / "s", "train", "vqa")
        for read in (lambda s: s.read(0), lambda s: list(s.texts()), lambda s: list(s.questions())):
            with pytest.raises(M2I2Error, match="Item 0 of"):
                read(split)


def _captions(split: ShardSplit, results: Any) -> None:
    results.put([split.read(i).captions[0] for i in range(len(split))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_side_by_side(shards: Path, method: str) -> None:
    split = ShardSplit.open(shards, "train", "captions")
    split.read(0)  # this process has files open already
    context = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [context.Process(target=_captions, args=(split, results)) for _ in range(2)]
    for process in processes:
        process.start()
    expected = [f"caption {i}" for i in range(8)]
    assert [results.get(timeout=300) for _ in processes] == [expected, expected]
    assert [split.read(i).captions[0] for i in range(8)] == expected
    for process in processes:
        process.join()


def test_a_hundred_million_items_open_at_once(shards: Path) -> None:
    count = 10**8
    with (shards / "train.items.npy").open("wb") as f:  # sparse: a hole of 3.2 GB
        descr = np.lib.format.dtype_to_descr(ITEM)
        np.lib.format.write_array_header_1_0(f, {"descr": descr, "fortran_order": False, "shape": (count,)})
        f.truncate(f.tell() + count * ITEM.itemsize)
    change_index(shards, lambda index: [s.update(items=count // 4) for s in index["splits"]["train"]["shards"]])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    split = ShardSplit.open(shards, "train", "captions")
    assert len(split) == count and int(split.items[count - 1]["shard"]) == 0
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
