"""Data sets of the library datasets: folders that it saves, read without it, and names on the hub."""

import hashlib
import io
import json
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import ipc, parquet

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources import open_source
from m2i2.data.sources.saved import CONVERTED
from m2i2.errors import M2I2Error


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8))


def questions(images: list[int]) -> datasets.Dataset:
    rows = {
        "image": [picture(image) for image in images],
        "question": [f"question {i}?" for i in range(len(images))],
        "answer": [i % 2 for i in range(len(images))],
    }
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_a_saved_folder_with_splits_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = datasets.DatasetDict({"train": questions([0, 1, 0]), "validation": questions([2])})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "validation": 1})
    words = ["vqa", "datasets", str(tmp_path / "saved"), "--output", str(tmp_path / "shards"), "--side", "32"]
    assert make_shards(words) == 0
    out = capsys.readouterr().out
    assert "train: 2 images, 3 items" in out and "val: 1 images, 1 items" in out
    train = ShardSplit.open(tmp_path / "shards", "train", "vqa")
    found = {asked.question.id: asked.question for asked in train.questions()}
    assert [(q.question, q.answer, q.closed) for _, q in sorted(found.items())] == [
        ("question 0?", "no", True),
        ("question 1?", "yes", True),
        ("question 2?", "no", True),
    ]


def test_a_saved_folder_without_splits_and_with_other_names(tmp_path: Path) -> None:
    table = {"scan": [picture(0), picture(1)], "findings": ["one", "two"]}
    datasets.Dataset.from_dict(table).cast_column("scan", datasets.Image()).save_to_disk(tmp_path / "saved")
    with pytest.raises(M2I2Error, match=r"has no column 'image'; it has scan, findings\. .* --columns image=\.\.\."):
        list(open_source("captions", "datasets", tmp_path / "saved"))
    for split in ("", "test"):
        options = {"columns": "image=scan,caption=findings", **({"split": split} if split else {})}
        records = list(open_source("captions", "datasets", tmp_path / "saved", **options))
        assert [(r.split, r.captions) for r in records] == [(split or "train", ("one",)), (split or "train", ("two",))]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes(records[1].image)))), np.asarray(picture(1)))  # type: ignore[arg-type]


def edited(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def stream(path: Path, table: pa.Table, **options: Any) -> None:
    with ipc.new_stream(path, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    questions([0, 1, 2]).save_to_disk(saved)
    (file,) = saved.glob("*.arrow")
    whole = file.read_bytes()
    read = lambda: list(open_source("vqa", "datasets", saved))  # noqa: E731
    assert len(read()) == 3
    for content in (whole[: len(whole) // 2], b"", whole[:64] + b"\xff" * 64 + whole[128:]):
        file.write_bytes(content)
        with pytest.raises(M2I2Error, match=r"data-00000-of-00001\.arrow is not a readable Arrow stream .*Copy it again"):
            read()
    table = ipc.open_stream(whole).read_all()
    stream(file, table, compression="zstd")
    with pytest.raises(M2I2Error, match="is compressed; save it again"):
        read()
    stream(file, table.set_column(1, "question", table["question"].dictionary_encode()))
    with pytest.raises(M2I2Error, match="has a dictionary"):
        read()
    endless = pa.array([[None] * 9000] * 3, pa.list_(pa.null()))
    stream(file, table.set_column(1, "question", endless))
    with pytest.raises(M2I2Error, match="column 'question': 27000 values in 3 rows"):
        read()
    stream(file, table.set_column(2, "answer", pa.array([7, 0, 1])))
    with pytest.raises(M2I2Error, match="column 'answer' has the label 7; there are 2"):
        read()
    file.unlink()
    with pytest.raises(M2I2Error, match=r"data-00000-of-00001\.arrow is missing, which .*state\.json names"):
        read()
    for changes, message in (
        ({"_data_files": [{"filename": "../secret"}]}, "names of files beside it were expected"),
        ({"_indices_data_files": [{"filename": "x"}]}, "save it again after dataset.flatten_indices"),
    ):
        with pytest.raises(M2I2Error, match=message):
            open_source("vqa", "datasets", edited(saved, "state.json", **changes))
    (saved / "state.json").unlink()
    with pytest.raises(M2I2Error, match="is not a folder of datasets' save_to_disk"):
        open_source("vqa", "datasets", saved)


def test_offsets_that_lead_out_of_a_buffer_are_noticed(tmp_path: Path) -> None:
    """Arrow follows offsets without a look at them unless it is asked to check."""
    saved = tmp_path / "saved"
    questions([0]).save_to_disk(saved)
    (file,) = saved.glob("*.arrow")
    before, right, after = file.read_bytes().rpartition(struct.pack("<2i", 0, len("question 0?")))
    assert right
    file.write_bytes(before + struct.pack("<2i", 0, 1 << 30) + after)
    with pytest.raises(M2I2Error, match="is not a readable Arrow stream"):
        list(open_source("vqa", "datasets", saved))


REVISIONS = {"a" * 40: "main", "b" * 40: CONVERTED}
"""Commits and their branches."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with the hub's addresses; files lie below the folder as COMMIT/NAME."""
    root = tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            headers: dict[str, str] = {}
            if parts[:4] == ["api", "datasets", "someone", "data"]:
                commit = next((c for c, name in REVISIONS.items() if "/".join(parts[5:] or ["main"]) in (c, name)), "")
                files = [path for path in (root / commit).rglob("*") if path.is_file()]
                if parts[4:5] == ["tree"]:
                    found = [
                        {"type": "file", "path": str(p.relative_to(root / commit)), "size": p.stat().st_size, "oid": "a"}
                        for p in files
                    ]
                    content = json.dumps(found).encode()
                else:
                    content = json.dumps({"id": "someone/data", "sha": commit, "siblings": []}).encode()
            elif parts[:4] == ["datasets", "someone", "data", "resolve"]:
                content = (root / "/".join(parts[4:])).read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": parts[4]}
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield root
        server.shutdown()


def test_a_schema_that_ends_arrows_reader_is_an_error(tmp_path: Path) -> None:
    """Found by fuzzing; pyarrow 26 ends by signal 11."""
    saved = tmp_path / "saved"
    questions([0]).save_to_disk(saved)
    (file,) = saved.glob("*.arrow")
    stream(file, pa.table({"image": [{"bytes": b"x", "path": "0.png"}], "question": ["is it?"], "answer": [0]}))
    content = bytearray(file.read_bytes())
    assert content[28:30] == b"\x00\x01" and content[54] == 0
    content[28:30], content[54] = b"\x20\x00", 8
    content[170:170] = b"pipe:"
    file.write_bytes(content)
    with pytest.raises(M2I2Error, match="is not a readable Arrow stream"):
        list(open_source("vqa", "datasets", saved))


@pytest.mark.parametrize(
    ("name", "commit", "file", "split"),
    [
        ("someone/data", "b" * 40, "default/train/0000.parquet", "train"),
        ("someone/data", "a" * 40, "data/train-00000-of-00001.parquet", "train"),
        ("someone/data:small", "a" * 40, "small/test-00000-of-00001.parquet", "test"),
    ],
)
def test_a_name_on_the_hub(hub: Path, name: str, commit: str, file: str, split: str) -> None:
    """The parquet files that the data set has itself, else those of the hub's conversion."""
    out = io.BytesIO()
    picture(0).save(out, "PNG")
    rows = [{"image": {"bytes": out.getvalue(), "path": None}, "caption": "a chest CT"}]
    for number, place in enumerate([(commit, file), ("b" * 40, "small/train/0001.parquet"), ("a" * 40, "README.md")]):
        path = hub.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows if number == 0 else [{**rows[0], "caption": "another"}]), path)
    first = next(iter(open_source("captions", "datasets", Path(name))))
    assert (first.split, first.captions, first.image) == (split, ("a chest CT",), out.getvalue())


def test_a_name_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(M2I2Error, match="is not there, and is not a name on the hub"):
        open_source("vqa", "datasets", tmp_path / "nowhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(M2I2Error, match=r"could not be downloaded .*load_dataset\('someone/data'\)\.save_to_disk\(FOLDER\)"):
        open_source("vqa", "datasets", Path("someone/data"))
