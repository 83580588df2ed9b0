"""The readers of a shard folder: its index, its tables of items, its tars and the texts in them."""

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from m2i2.data.records import Kind
from m2i2.data.shards.building import Encoding, build
from m2i2.data.shards.split import ITEM, ShardSplit, read_index
from m2i2.data.shards.verification import verify
from m2i2.data.sources import open_source
from m2i2.errors import M2I2Error
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes, mutated_json


def _made(folder: Path, kind: Kind) -> Path:
    source = open_source(kind, "phantoms", None, count=3)
    build(source, folder / kind, Encoding(side=16), options={"count": 3}, samples_per_shard=2)
    return folder / kind


def _read_all(folder: Path, split: str, kind: Kind) -> None:
    opened = ShardSplit.open(folder, split, kind)
    for item in range(len(opened)):
        opened.read(item)
    list(opened.texts())
    opened.storage.close()


def _index(folder: Path) -> Opened:
    made = [_made(folder, "captions"), _made(folder, "vqa")]

    def read(data: bytes) -> None:
        (made[0] / "index.json").write_bytes(data)
        index = read_index(made[0])
        for split in index["splits"]:
            _read_all(made[0], split, index["kind"])
        if verify(made[0], index):
            raise M2I2Error("verify found faults")

    return Opened([(made[0] / "index.json").read_bytes()], read)


def _table(folder: Path) -> Opened:
    made = _made(folder, "captions")
    path = made / "train.items.npy"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        verify(made, read_index(made))
        _read_all(made, "train", "captions")

    return Opened([path.read_bytes()], read)


@st.composite
def _changed_table(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Rows with extreme fields, arrays of other types and shapes, headers that claim what is not there."""
    items = np.load(io.BytesIO(draw(st.sampled_from(seeds))))
    match draw(st.integers(0, 3)):
        case 0 | 1:
            for _ in range(draw(st.integers(1, 3))):
                field = draw(st.sampled_from(ITEM.names or ()))
                largest = int(np.iinfo(items[field].dtype).max)
                items[field][draw(st.integers(0, len(items) - 1))] = draw(st.one_of(st.integers(0, 4), st.integers(0, largest)))
        case 2:
            kinds = ["<u4", ">u4", "<f8", "S3", "U2", "?", "V40", "<M8[s]", "<c16"]
            items = np.zeros(draw(st.lists(st.integers(0, 4), max_size=3)), dtype=draw(st.sampled_from(kinds)))
        case _:
            shape = draw(
                st.sampled_from(["(6,)", "()", "(-1,)", "(0,)", "(99999999999999,)", "(6", "6", "None", "(True,)", "(6,1)"])
            )
            descr = draw(
                st.sampled_from([repr(np.lib.format.dtype_to_descr(ITEM)), "'|O'", "'<u4'", "'V0'", "[]", "5", "[('a','<u4')]*9"])
            )
            order = draw(st.sampled_from(["False", "True", "None", "[]"]))
            header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
            return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + items.tobytes()
    out = io.BytesIO()
    np.save(out, items)
    return out.getvalue()


def _tar(folder: Path) -> Opened:
    made = _made(folder, "captions")
    path, index = made / "train-000000.tar", read_index(made)
    row = index["splits"]["train"]["shards"][0]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        faults = verify(made, index)
        row["bytes"] = len(data)
        (made / "index.json").write_text(json.dumps(index))
        _read_all(made, "train", "captions")
        if faults:
            raise M2I2Error(faults[0])

    return Opened([path.read_bytes()], read)


@st.composite
def _changed_tar(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Members of every type, with names and sizes of every kind, in every dialect."""
    archive = draw(st.sampled_from(seeds))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        parts = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    for _ in range(draw(st.integers(1, 3))):
        member, content = parts[draw(st.integers(0, len(parts) - 1))]
        match draw(st.integers(0, 4)):
            case 0:
                member.name = draw(st.sampled_from(["../x", "/x", "a/b", "", ".", "x\0y", "é" * 40, "n" * 300, parts[0][0].name]))
            case 1:
                member.size = draw(st.sampled_from([-1, 0, 1, len(content) + 1, 1 << 33, 1 << 62, 1 << 80]))
            case 2:
                member.type = draw(st.sampled_from([bytes([kind]) for kind in b"\x0001234567xgLKSVDM"]))
                member.linkname = draw(st.sampled_from(["", "/etc/passwd", "../x"]))
            case 3:
                pax = st.dictionaries(
                    st.sampled_from(["size", "path", "GNU.sparse.major", "GNU.sparse.map", "a"]), st.text(max_size=4)
                )
                member.pax_headers = draw(pax)
            case _:
                parts.insert(draw(st.integers(0, len(parts))), (member, content))
    dialect = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    out = b""
    for member, content in parts:
        try:
            out += member.tobuf(dialect, errors="surrogateescape")
        except ValueError:  # this dialect cannot say it
            out += member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") if member.size < 1 << 80 else bytes(100)
        out += content + bytes(-len(content) % 512)
    out += bytes(512 * draw(st.sampled_from([2, 2, 0, 1, 20])))
    return draw(mutated_bytes([out])) if draw(st.integers(0, 3)) == 0 else out


def _text(kind: Kind) -> Any:
    def opened(folder: Path) -> Opened:
        made = _made(folder, kind)
        index = read_index(made)
        tar, items = (made / "train-000000.tar").read_bytes(), np.load(made / "train.items.npy")
        start, size = int(items["text_offset"][0]), int(items["text_size"][0])

        def read(data: bytes) -> None:
            items["text_offset"][0], items["text_size"][0] = len(tar), len(data)
            items["text_crc32"][0] = zlib.crc32(data)
            index["splits"]["train"]["shards"][0]["bytes"] = len(tar) + len(data)
            (made / "train-000000.tar").write_bytes(tar + data)
            (made / "index.json").write_text(json.dumps(index))
            np.save(made / "train.items.npy", items)
            _read_all(made, "train", kind)

        return Opened([tar[start : start + size]], read)

    return opened


READERS = [
    Reader("index", _index, mutated_json),
    Reader("table of items", _table, either(_changed_table, mutated_bytes)),
    Reader("tar", _tar, either(_changed_tar, mutated_bytes)),
    Reader("text of captions", _text("captions"), mutated_json),
    Reader("text of questions", _text("vqa"), mutated_json),
]
