"""Data is hostile: nothing in it runs, nothing in it asks for memory or time out of proportion, and each refusal says why."""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

from m2i2.cli.make_shards import main
from m2i2.config import PretrainingConfig
from m2i2.data.images.decoding import decode
from m2i2.data.images.picture import open_picture
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources import open_source
from m2i2.data.text.tokenizer import load_tokenizer, train_tokenizer
from m2i2.errors import M2I2Error
from m2i2.models.start import stored_architecture
from m2i2.models.weights import read_state as read_weights
from m2i2.options import from_dict
from m2i2.reporting.records import read_run
from m2i2.training.checkpoint import flaw, read_config, read_run_state, read_tensors, seal
from m2i2.workflows.answering import read_candidates
from tests.fuzz.harness import refuses


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three captioned images."""
    words = ["captions", "phantoms", "--count", "3", "--side", "16", "--samples-per-shard", "2", "--workers", "1"]
    assert main([*words, "--output", str(tmp_path / "shards")]) == 0
    return tmp_path / "shards"


# --- images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8))


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, marker = tmp_path / "gs", tmp_path / "marker"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(M2I2Error, match=r"image x cannot be decoded: it is damaged, or its format is not supported \(JPEG"):
        decode(encoded(SMALL, "EPS"), "x")
    assert not marker.exists()


def tags(count: int, size: int) -> bytes:
    """A directory of tags that all point at the same bytes: a TIFF, and an EXIF."""
    start = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack("<HHII", 1000 + i, 7, size, start) for i in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + size)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes) -> bytes:
    png = encoded(SMALL, "PNG")
    return png[:33] + chunk(kind, content) + png[33:]


def jpeg_with_exif(exif: bytes) -> bytes:
    parts = [exif[i : i + 65_000] for i in range(0, len(exif), 65_000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts]
    jpeg = encoded(SMALL, "JPEG")
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def profile(exif: bytes) -> bytes:
    return b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%d\n" % len(exif) + exif.hex().encode())


def many_scans() -> bytes:
    jpeg = encoded(SMALL.convert("L"), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * 200 + jpeg[-2:]


def huge_tiles() -> bytes:
    """A compressed TIFF of 16 x 16 pixels in a tile of 65,536 x 65,536."""
    fields = ((256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, 65_536), (323, 65_536), (324, 200), (325, 9))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return (b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries).ljust(200, b"\0") + zlib.compress(b"")


BOMB = tags(4000, 200_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB, "tags claim 800000000 bytes"),
        (b"MM\0*" + BOMB[4:], "cannot be decoded"),
        (with_chunk(b"eXIf", BOMB), "tags claim 800000000 bytes"),
        (with_chunk(b"zTXt", profile(tags(2000, 100_000))), "tags claim 200000000 bytes"),
        (jpeg_with_exif(BOMB), "bytes of EXIF"),
        (many_scans(), "more than 100 JPEG scans"),
        (huge_tiles(), "tiles of more than"),
        (with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300 << 20))), "cannot be decoded"),
        (with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300 << 20))), "cannot be decoded"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF"), "not finite"),
        (encoded(Image.new("L", (20_000, 20_000)), "PNG"), "20000 x 20000 pixels, more than"),
        (encoded(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"), "20000 x 20000 pixels, more than"),
        (encoded(Image.new("P", (12_000, 12_000)), "GIF"), "12000 x 12000 pixels, more than"),
    ],
    ids=["tiff", "big-endian", "eXIf", "profile", "exif", "scans", "tiles", "zTXt", "iCCP", "nan", "png", "fax", "gif"],
)
def test_image_bombs(data: bytes, message: str) -> None:
    def read(data: bytes) -> None:
        decode(data, "x")

    with pytest.raises(M2I2Error, match=message):
        decode(data, "x")
    assert refuses(read, data), "within bounds of time and memory"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (encoded(SMALL, "PNG", exif=exif), with_chunk(b"zTXt", profile(exif.tobytes()))):
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(np.asarray(decode(data, "x")), np.asarray(expected))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_the_image(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data, "x").getpixel((3, 3)) == (255, 0, 0)


def test_image_files_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.png")
    with (tmp_path / "b.png").open("wb") as f:
        f.truncate(1 << 40)
    os.mkfifo(tmp_path / "c.png")
    (tmp_path / "p.json").write_text(json.dumps([{"image": f"{n}.png", "caption": "c"} for n in "abc"]))
    words = ["captions", "json", str(tmp_path / "p.json"), "--output", str(tmp_path / "s"), "--max-rejects", "1"]
    assert main([*words, "--workers", "1"]) == 0
    rejects = (tmp_path / "s" / "rejects.jsonl").read_text()
    assert "1099511627776 bytes, more than the bound" in rejects and "not a regular file" in rejects


# --- tars, indexes, texts


def tar(*members: tuple[str, bytes, bytes], end: bytes = bytes(1024), size: int | None = None) -> bytes:
    out = b""
    for name, kind, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(content) if size is None else size, "/etc/passwd"
        out += info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return out + end


FILE = tarfile.REGTYPE


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (tar(("../x.jpg", FILE, b"a")), "'../x.jpg' escapes its folder"),
        (tar(("/x.jpg", FILE, b"a")), "'/x.jpg' escapes its folder"),
        (tar(("x.jpg", FILE, b"a"), ("x.jpg", FILE, b"b")), "'x.jpg' comes twice"),
        (tar(("x.jpg", tarfile.SYMTYPE, b"")), "not a regular file"),
        (tar(("x.jpg", tarfile.LNKTYPE, b"")), "not a regular file"),
        (tar(("x.jpg", tarfile.CHRTYPE, b"")), "not a regular file"),
        (tar(("x.jpg", tarfile.FIFOTYPE, b"")), "not a regular file"),
        (tar(("x", tarfile.DIRTYPE, b"")), "not a regular file"),
        (tar(("n" * 200 + ".jpg", FILE, b"a")), "not a regular file"),
        (tar(("x.jpg", FILE, b"a"), size=-1), "claims -1 bytes"),
        (tar(("x.jpg", FILE, b"a"), size=1 << 80), "claims 1208925819614629174706176 bytes"),
        (tar(("x.jpg", FILE, b"a"), end=b""), "does not end as a tar does"),
        (tar(("x.jpg", FILE, b"a"), end=bytes(1024) + b"more"), "does not end as a tar does"),
        (tar(("x.jpg", FILE, b"a"), end=b"\xff" * 512), "cannot be read"),
    ],
)
def test_tars_hold_plain_files_and_nothing_else(
    shards: Path, capsys: pytest.CaptureFixture[str], content: bytes, fault: str
) -> None:
    (shards / "train-000000.tar").write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(shards)]) == 2
    assert fault in capsys.readouterr().err


def test_a_table_of_another_type_is_a_fault(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(shards / "train.items.npy", np.zeros(3, dtype="<u4"))
    assert main(["verify", str(shards)]) == 2
    assert "rows of uint32, the index says 3 items" in capsys.readouterr().err


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def rows(index: dict[str, Any]) -> list[dict[str, Any]]:
    return index["splits"]["train"]["shards"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda i: rows(i)[0].update(file="\ud800-000000.tar"), "not a valid name of a shard"),
        (lambda i: rows(i)[0].update(file="pipe:touch x.tar"), "not a valid name of a shard"),
        (lambda i: rows(i)[0].update(file="train-000000.tar;touch x.tar"), "not a valid name of a shard"),
        (lambda i: rows(i)[0].update(file="https://host/train-000000.tar"), "not a valid name of a shard"),
        (lambda i: rows(i)[0].update(sha256="../" * 20), "sha256 of train-000000.tar is not a hash"),
        (lambda i: rows(i)[0].update(bytes=float("nan")), "NaN is not JSON"),
        (lambda i: rows(i).append(rows(i)[0]), "names a shard twice"),
        (lambda i: i.update(fingerprint="x"), "fingerprint is not a hash"),
        (lambda i: i.update(source="\ud800"), "surrogates not allowed"),
        (lambda i: i.update(kind=["captions"] * 10**5), "kind"),
    ],
)
def test_indexes_name_shards_and_nothing_else(shards: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    change(shards / "index.json", edit)
    with pytest.raises(M2I2Error, match=message) as error:
        ShardSplit.open(shards, "train", "captions")
    assert len(str(error.value)) < 1000


def test_stored_texts_are_valid_unicode(shards: Path) -> None:
    items, path = np.load(shards / "train.items.npy"), shards / "train-000000.tar"
    start, size, content = int(items["text_offset"][0]), int(items["text_size"][0]), path.read_bytes()
    payload = json.loads(content[start : start + size])
    payload["captions"] = ["\ud800"]
    text = json.dumps(payload).encode()
    assert len(text) <= size
    items["text_crc32"][0] = zlib.crc32(text.ljust(size))
    np.save(shards / "train.items.npy", items)
    path.write_bytes(content[:start] + text.ljust(size) + content[start + size :])
    with pytest.raises(M2I2Error, match=r"Item 0 of .* surrogates not allowed"):
        ShardSplit.open(shards, "train", "captions").read(0)


# --- what is not a regular file, and what is too large


def sources(path: Path, kind: Any, name: str) -> list[Any]:
    return list(open_source(kind, name, path))


READS: dict[str, Callable[[Path], Any]] = {
    "index.json": lambda p: ShardSplit.open(p.parent, "train", "captions"),
    "manifest.json": lambda p: _raise(flaw(p.parent)),
    "config.json": lambda p: read_config(PretrainingConfig, p.parent),
    "state.json": lambda p: read_run_state(p.parent),
    "model.safetensors": read_tensors,
    "weights.safetensors": read_weights,
    "weights.pth": read_weights,
    "model.safetensors.index.json": lambda p: read_weights(p.parent),
    "pairs.json": lambda p: sources(p, "captions", "json"),
    "pairs.jsonl": lambda p: sources(p, "captions", "json"),
    "train_captions.csv": lambda p: ((p.parent / "train").mkdir(exist_ok=True), sources(p.parent, "captions", "rocov2")),
    "train.parquet": lambda p: sources(p.parent, "captions", "parquet"),
    "questions.csv": lambda p: sources(p, "vqa", "json"),
    "tokenizer.json": lambda p: load_tokenizer(p.parent),
    "vocab.txt": lambda p: load_tokenizer(p.parent),
    "results.json": lambda p: read_run(p.parent),
    "answers.txt": read_candidates,
    "image.png": open_picture,
    "qas/train_vqa.pkl": lambda p: sources(p.parent.parent, "vqa", "pathvqa"),
}


def _raise(reason: str) -> None:
    if reason:
        raise M2I2Error(reason)


@pytest.mark.parametrize("name", READS)
def test_pipes_do_not_block(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert refuses(lambda data: READS[name](path), b"")


@pytest.mark.parametrize("name", [name for name in READS if not name.endswith((".safetensors", ".pth"))])
def test_sizes_are_checked_before_anything_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as f:
        f.truncate(2 << 30)  # sparse
    assert refuses(lambda data: READS[name](path), b"")


def test_a_shard_that_is_a_pipe(shards: Path) -> None:
    for name in ("train-000000.tar", "train.items.npy"):
        (shards / name).rename(shards / "aside")
        os.mkfifo(shards / name)
        assert refuses(lambda data: ShardSplit.open(shards, "train", "captions"), b"")
        assert main(["verify", str(shards)]) == 2
        (shards / "aside").replace(shards / name)


# --- sources


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "n" * 300, "caption": "c"}, "cannot be looked up: File name too long"),
        ({"image": "/etc/passwd", "caption": "c"}, "leads out of"),
        ({"image": "a\0b", "caption": "c"}, "leads out of"),
        ({"image": float("nan"), "caption": "c"}, "NaN is not JSON"),
        ({"image": {"x": 1}, "caption": "c"}, "the field 'image' is dict"),
    ],
)
def test_records_that_lead_elsewhere(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps([record]))
    with pytest.raises(M2I2Error, match=message):
        list(open_source("captions", "json", tmp_path / "p.json"))


@pytest.mark.parametrize("number", ["1e400", "1" * 5000, "[" * 5000 + "]" * 5000])
def test_numbers_and_nesting_of_any_size(tmp_path: Path, number: str) -> None:
    (tmp_path / "p.json").write_text(f'[{{"image": "x", "caption": "c", "split": {number}}}]')
    with pytest.raises(M2I2Error, match="is not valid JSON"):
        list(open_source("captions", "json", tmp_path / "p.json"))


@pytest.mark.parametrize(
    ("caption", "message"),
    [('"' + "x" * 200_000 + '"', "field larger than field limit"), ("x" * (5 << 20), "a line of more than 4194304 characters")],
    ids=["field", "line"],
)
def test_fields_and_lines_of_tables(tmp_path: Path, caption: str, message: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train_captions.csv").write_text(f"ID,Caption\na,{caption}\n")
    with pytest.raises(M2I2Error, match=message):
        list(open_source("captions", "rocov2", tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([{1 << 64: 1}]), "a number of more than 64 bits"),
        (pickle.dumps([{"label": b"x"}]), "holds (SHORT_BINBYTES|BINBYTES)"),
        (b"\x80\x04]R.", "holds REDUCE"),
        (b"\x80\x04]}b.", "holds BUILD"),
        (b"\x80\x04Pid\n.", "holds PERSID"),
        (b"\x80\x04\x82\x01.", "holds EXT1"),
        (b"\x80\x05\x97.", "holds NEXT_BUFFER"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "not a readable pickle"),
    ],
)
def test_pickles_are_plain(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "qas").mkdir()
    (tmp_path / "qas" / "train_vqa.pkl").write_bytes(content)
    with pytest.raises(M2I2Error, match=message):
        list(open_source("vqa", "pathvqa", tmp_path))


# --- weights and checkpoints


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new", [True, False])
def test_weights_from_elsewhere_never_run(tmp_path: Path, new: bool) -> None:
    path, marker = tmp_path / "x.pth", tmp_path / "marker"
    torch.save({"model": {"a": torch.ones(1)}, "more": Evil(marker)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(M2I2Error, match="as weights only"):
        read_weights(path)
    assert not marker.exists()


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 16)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (compressed, "compressed, which torch.save never does"),
        (lambda p: torch.save({"a": torch.ones(1).expand(1 << 40)}, p), "claims 4398046511104 bytes"),
        (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "not a plain tensor"),
        (lambda p: torch.save({"a": torch.ones(3, device="meta")}, p), "not a plain tensor"),
        (lambda p: torch.save([torch.ones(3)], p), "not a state dictionary"),
        (lambda p: p.write_bytes(b"\x80\x02X\xff\xff\xff\xff."), "as weights only"),
    ],
)
def test_weights_take_no_more_than_their_file(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "x.pth")
    with pytest.raises(M2I2Error, match=message):
        read_weights(tmp_path / "x.pth")
    assert refuses(lambda data: read_weights(tmp_path / "x.pth"), b"")


@pytest.mark.parametrize(
    "parts",
    [
        [],
        {"weight_map": []},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": "../x"}},
        {"weight_map": {"a": "x\0"}},
        {"weight_map": {"a": "\ud800"}},
    ],
)
def test_indexes_of_weights(tmp_path: Path, parts: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(parts))
    with pytest.raises(M2I2Error):
        read_weights(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 1 << 27, (1 << 63) - 1, (1 << 64) - 1])
def test_headers_of_safetensors(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + save({"a": torch.ones(2)})[8:])
    for read in (read_tensors, read_weights):
        with pytest.raises(M2I2Error, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ('{"format": 1, "files": {"a": {"bytes": 1e400, "sha256": ""}}}', "damaged"),
        ('{"format": 1, "files": {"a": {"bytes": ' + DEEP + ', "sha256": ""}}}', "bytes, not|damaged"),
        ('{"format": ' + DEEP + "}", "its format is|damaged"),
        ('{"format": 1, "files": {"' + "n" * 300 + '": {"bytes": 1, "sha256": ""}}}', "cannot be read"),
        ('{"format": 1, "files": {"a\\u0000": {"bytes": 1, "sha256": ""}}}', "names a file outside it"),
        ('{"format": 1, "files": {"\\u001b[2J": {"bytes": 1, "sha256": ""}}}', "names a file outside it"),
        ('{"format": 1, "files": {"\\ud800": {"bytes": 1, "sha256": ""}}}', "names a file outside it"),
    ],
)
def test_manifests(tmp_path: Path, manifest: str, reason: str) -> None:
    (tmp_path / "a").write_text("x")
    seal(tmp_path)
    assert flaw(tmp_path) == ""
    (tmp_path / "manifest.json").write_text(manifest)
    assert any(part in flaw(tmp_path) for part in reason.split("|"))


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "5",
        "{}",
        '{"vision": [], "text": {}}',
        '{"stage": "PretrainingConfig", "vision": 5}',
        '{"stage": "PretrainingConfig", "vision": ' + DEEP + "}",
    ],
)
def test_settings_of_a_checkpoint(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    for read in (lambda: read_config(PretrainingConfig, tmp_path), lambda: stored_architecture(tmp_path)):
        with pytest.raises(M2I2Error):
            read()


@pytest.mark.parametrize("value", ["[]", "{}", '{"step": -1, "optimizer_steps": 1, "skipped_steps": 0}', '{"step": "1"}'])
def test_the_state_of_a_run(tmp_path: Path, value: str) -> None:
    (tmp_path / "state.json").write_text(value)
    with pytest.raises(M2I2Error, match="state"):
        read_run_state(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"lr": float("nan")}},
        {"optimizer": {"lr": float("inf")}},
        {"vision": {"patch_size": 0}},
        {"text": {"heads": -1}},
        {"x" * 10**6: 1},
    ],
)
def test_settings_that_no_run_can_have(values: dict[str, Any]) -> None:
    with pytest.raises(M2I2Error) as error:
        from_dict(PretrainingConfig, values)
    assert len(str(error.value)) < 1000


def test_ids_lie_within_the_vocabulary(tmp_path: Path) -> None:
    train_tokenizer(["a lung"], 20).save(tmp_path)
    change(tmp_path / "tokenizer.json", lambda t: t["model"]["vocab"].update(lung=1 << 20))
    with pytest.raises(M2I2Error, match="ids beyond its"):
        load_tokenizer(tmp_path)
