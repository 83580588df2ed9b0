"""Small files that ask for gigabytes or minutes: tables, JSON, YAML, pickles and weights are refused before they are unpacked."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from m2i2.cluster.options import read_cluster_file
from m2i2.config import PretrainingConfig
from m2i2.data.images.decoding import decode
from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error
from m2i2.experiments.recipe import read_recipe
from m2i2.models.weights import read_state
from m2i2.options import read_settings
from m2i2.training.checkpoint import read_tensors
from m2i2.training.deepspeed.configuration import read_deepspeed_config
from tests.fuzz.harness import refuses

# --- parquet


def repeated(value: bytes, count: int) -> pa.Array:
    """A column that says one value again and again."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], pa.binary()))


def nested(depth: int) -> pa.Array:
    kind: pa.DataType = pa.string()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    return pa.nulls(1, kind)


TABLES: dict[str, tuple[Callable[[], pa.Array], str]] = {
    "rows of nothing": (lambda: pa.nulls(2_000_000, pa.binary()), "claims 2000000 rows in"),
    "endless columns": (lambda: nested(60), "columns nested more than 32 deep|nested too deeply"),
    "one list of nulls": (lambda: pa.array([[None] * 200_000], pa.list_(pa.string())), "200000 values in 1 rows"),
    "values of one length": (lambda: pa.nulls(1, pa.binary(2 << 20)), "values of 2097152 bytes each"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path: Path, name: str) -> None:
    column, message = TABLES[name]
    images = column()
    table = pa.table({"image": images, "caption": pa.nulls(len(images), pa.string())})
    path = tmp_path / "train.parquet"
    parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 10_000
    read = lambda data: list(open_source("captions", "parquet", path))  # noqa: E731
    with pytest.raises(M2I2Error, match=message):
        read(b"")
    assert refuses(read, b""), "within bounds of time and memory"


def test_statistics_that_end_arrow_s_process_are_not_shown_to_it(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"image": [b"a"], "caption": ["b"]}), path)
    content, column = path.read_bytes(), b"\x15\x0c\x25\x02\x18\x05image"  # of bytes, whose statistics count them
    assert content.count(column) == 1
    path.write_bytes(content.replace(column, b"\x15\x00" + column[2:]))  # of truth values now
    child = os.fork()
    if child == 0:
        try:
            list(open_source("captions", "parquet", path))
        except M2I2Error:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_pages_are_refused_by_what_they_unpack_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.data.sources.pages.MOST_DECODED", 8 << 20)  # of 256 MiB, which take a while to write
    table = pa.table({"image": repeated(bytes(40 << 20), 1500), "caption": pa.nulls(1500, pa.string())})
    parquet.write_table(table, tmp_path / "train.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert (tmp_path / "train.parquet").stat().st_size < 10_000
    with pytest.raises(M2I2Error, match="a page unpacks to 41943076 bytes"):
        list(open_source("captions", "parquet", tmp_path / "train.parquet"))


def test_the_rows_of_a_table_are_counted_as_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.data.sources.pages.FREE", 8 << 20)  # of 2 GB, which take a while
    table = pa.table({"image": repeated(bytes(1 << 20), 400), "caption": ["c"] * 400})
    parquet.write_table(table, tmp_path / "train.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    with pytest.raises(M2I2Error, match="its rows unpack to more than"):
        list(open_source("captions", "parquet", tmp_path / "train.parquet"))


def test_large_values_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.data.sources.pages.MOST_DECODED", 10 << 20)
    noise = [np.random.default_rng(n).bytes(1 << 20) for n in range(4)]
    parquet.write_table(pa.table({"image": noise, "caption": list("abcd")}), tmp_path / "train.parquet", compression="none")
    found = [record.image for record in open_source("captions", "parquet", tmp_path / "train.parquet")]
    assert found == noise


# --- JSON, YAML, pickles


def read_json_list(path: Path) -> list[Any]:
    return list(open_source("captions", "json", path))


@pytest.mark.parametrize("value", [b"0,", b"[],", b'{"":0},', b'"",'])
def test_values_of_json_are_counted(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(b"[" + value * (11_000_000 if value == b"0," else 10_500_000) + b"0]")
    with pytest.raises(M2I2Error, match=r"more than 10000000 values; split it, or write it as JSON Lines|more than the bound"):
        read_json_list(path)


def test_objects_of_pickles_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.data.sources.pickles.MOST_STEPS", 20_000)  # of two million
    (tmp_path / "qas").mkdir()
    (tmp_path / "qas" / "train_vqa.pkl").write_bytes(b"\x80\x04(" + b"]" * 21_000 + b"l.")
    with pytest.raises(M2I2Error, match="more than 20000 steps"):
        list(open_source("vqa", "pathvqa", tmp_path))


SETTINGS: dict[str, Callable[[Path], Any]] = {
    "cluster.yaml": read_cluster_file,
    "recipe.json": read_recipe,
    "settings.json": lambda path: read_settings(PretrainingConfig, path),
    "deepspeed.json": read_deepspeed_config,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_bounded_files(tmp_path: Path, name: str) -> None:
    path, read = tmp_path / name, SETTINGS[name]
    path.write_text("[" * 1_500 + "]" * 1_500)
    with pytest.raises(M2I2Error, match="nested too deeply"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    assert refuses(lambda data: read(path), b""), "it does not wait for a writer"
    with pytest.raises(M2I2Error, match="not a regular file"):
        read(Path("/dev/zero"))
    path.unlink()
    with path.open("wb") as f:
        f.truncate(2 << 30)  # sparse
    assert refuses(lambda data: read(path), b"")


def test_files_that_have_no_size_and_no_end(tmp_path: Path) -> None:
    endless = Path("/proc/self/pagemap")
    assert endless.stat().st_size == 0
    with pytest.raises(M2I2Error, match=r"^/proc/self/pagemap was refused: it has more than the bound of"):
        read_cluster_file(endless)
    (tmp_path / "recipe.json").symlink_to(endless)
    assert refuses(lambda data: read_recipe(tmp_path / "recipe.json"), b""), "within bounds of time and memory"


@pytest.mark.parametrize("text", ['a: "\\U00110000"', "time: " + "9" * 5000, "time: 1-" + "9" * 5000, "a: &a [*a]", "\x00"])
def test_cluster_files_are_lines_of_options(tmp_path: Path, text: str) -> None:
    import argparse

    from m2i2.cluster.options import add_cluster_options, cluster_options

    parser = argparse.ArgumentParser()
    add_cluster_options(parser)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(M2I2Error):
        cluster_options(parser.parse_args([]), tmp_path / "c.yaml")


@pytest.mark.parametrize("seeds", [10**9, 0, -1])
def test_recipes_ask_for_a_number_of_runs_that_can_be_counted(tmp_path: Path, seeds: int) -> None:
    recipe = {"name": "x", "pretraining_shards": ["s"], "datasets": {"rad": {"shards": "s", "seeds": seeds}}}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    with pytest.raises(M2I2Error, match=r"seeds=.* must lie between 1 and 1000"):
        read_recipe(tmp_path / "r.json")


# --- weights


def test_names_in_safetensors_are_counted(tmp_path: Path) -> None:
    entries = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(110_000))
    header = f"{{{entries}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (read_tensors, read_state):
        with pytest.raises(M2I2Error, match="names more than 100000 tensors"):
            read(tmp_path / "model.safetensors")


def many_objects(path: Path, new: bool) -> None:
    """A file of weights whose pickle is a long list of empty lists."""
    lists = b"\x80\x02(" + b"]" * 21_000 + b"l."
    if not new:
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})) + lists)
        return
    out = io.BytesIO()
    torch.save({"a": torch.ones(1)}, out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as archive:
        for member in old.infolist():
            archive.writestr(member.filename, lists if member.filename.endswith(".pkl") else old.read(member))


@pytest.mark.parametrize("new", [True, False])
def test_objects_of_weights_are_counted(tmp_path: Path, new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.models.bounds.MOST_OPCODES", 20_000)  # of a million
    many_objects(tmp_path / "x.pth", new)
    with pytest.raises(M2I2Error, match="its pickle has more than 20000 steps"):
        read_state(tmp_path / "x.pth")


def test_tensors_together_claim_no_more_than_their_file(tmp_path: Path) -> None:
    one = torch.ones(1 << 20)
    torch.save({f"t{number}": one for number in range(20)}, tmp_path / "x.pth")
    with pytest.raises(M2I2Error, match="its tensors claim 83886080 bytes in all"):
        read_state(tmp_path / "x.pth")


# --- images


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("F", "TIFF"), ("RGBA", "WEBP"), ("RGBA", "PNG"), ("RGB", "PNG")])
def test_memory_of_an_image_is_bounded_by_its_mode(mode: str, kind: str) -> None:
    side = 11_000 if mode == "RGB" else 9_000
    out = io.BytesIO()
    Image.new(mode, (64, 64)).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    with pytest.raises(M2I2Error, match="more than the bound"):
        decode(resized(out.getvalue(), kind, side), "x")


def test_scans_of_a_large_jpeg_are_few() -> None:
    from tests.unit.test_security import many_scans

    jpeg = many_scans()
    last = jpeg.rfind(b"\xff\xda")
    few = jpeg[: jpeg.index(jpeg[last:-2])] + jpeg[last:-2] * 60 + jpeg[-2:]
    place = few.index(b"\xff\xc2") + 5
    with pytest.raises(M2I2Error, match=r"it has \d+ JPEG scans of 25000000 pixels"):
        decode(few[:place] + struct.pack(">HH", 5000, 5000) + few[place + 4 :], "x")


def resized(encoded: bytes, kind: str, side: int) -> bytes:
    """The same file with another width and height in its header."""
    if kind == "PNG":
        import zlib

        head = b"IHDR" + struct.pack(">2I", side, side) + encoded[24:29]
        return encoded[:12] + head + struct.pack(">I", zlib.crc32(head)) + encoded[33:]
    if kind == "WEBP":  # lossless: 14 bits each, less one
        place = encoded.index(b"VP8L") + 9
        bits = int.from_bytes(encoded[place : place + 4], "little") & ~0xFFFFFFF | (side - 1) | (side - 1) << 14
        return encoded[:place] + bits.to_bytes(4, "little") + encoded[place + 4 :]
    data = bytearray(encoded)
    start, count = struct.unpack_from("<I", data, 4)[0], 0
    count = struct.unpack_from("<H", data, start)[0]
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] in (256, 257, 278):
            struct.pack_into("<HII", data, place + 2, 4, 1, side)
    return bytes(data)
