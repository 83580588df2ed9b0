"""What the worst inputs that are accepted cost: ``python -m tests.fuzz.costs`` prints memory and time of one of each class.

Every input is made as large as its bounds allow (see docs/security.md) and read in a process of its own through the public door.
It may still be refused at the end, as a table without a readable image is: what it took until then is what counts.
"""

import argparse
import io
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from pydicom import uid

from m2i2.cluster.options import read_cluster_file
from m2i2.data.images.decoding import MAX_PIXELS, decode
from m2i2.data.images.dicom import decode_dicom
from m2i2.data.images.memory import MAX_MEMORY, cost_of
from m2i2.data.sources import open_source
from m2i2.data.text.tokenizer import load_tokenizer, train_tokenizer
from m2i2.errors import M2I2Error
from m2i2.models.weights import read_state
from tests.fuzz.readers.medical import dicom, stream
from tests.fuzz.readers.pictures import item_of, palette_of

Image.MAX_IMAGE_PIXELS = None


def _image(mode: str, kind: str, most: int = MAX_PIXELS, **options: Any) -> Callable[[Path], None]:
    """A file of as many pixels of a mode as are accepted, of noise where that does not make the file too large to write."""

    def made(folder: Path) -> None:
        side = int(min(most, MAX_MEMORY / cost_of(mode, kind)) ** 0.5)
        Image.new(mode, (side, side)).save(folder / "image", kind, **options)

    return made


def _scans(folder: Path) -> None:
    """A progressive JPEG with as many scans as are accepted."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5000, 5000), dtype=np.uint8)).save(out, "JPEG", progressive=True)
    jpeg = out.getvalue()
    last = jpeg.rfind(b"\xff\xda")
    (folder / "image").write_bytes(jpeg[:last] + jpeg[last:-2] * 34 + jpeg[-2:])


def _header(kind: str, pixels: NDArray[np.uint16]) -> dict[str, Any]:
    """What makes a picture of 16-bit values one of another kind."""
    side = len(pixels)
    table = {"LUTDescriptor": [4096, 0, 16], "LUTData": np.arange(4096).astype("<u2").tobytes()}
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": kind}
    noise = np.random.default_rng(0).integers(16, 235, side * side * 3, dtype=np.uint8)
    found: dict[str, dict[str, Any]] = {
        "window": {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 2, "RescaleIntercept": -1024},
        "tables": {
            "ModalityLUTSequence": item_of(ModalityLUTType="US", **table),
            **{"VOILUTSequence": item_of(**table), "PixelAspectRatio": ["4", "1"]},
        },
        "RGB": {**colour, "BitsStored": 16, "HighBit": 15, "PixelData": (noise * np.uint16(257)).tobytes()},
        "YBR_PARTIAL_422": {
            **{**colour, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            "PixelData": noise[: side * side * 2].tobytes(),
        },
        "palette": {
            **{**palette_of(16), "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
            "PixelData": pixels.tobytes(),
        },
    }
    return found[kind]


def _dicom(kind: str) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        from m2i2.data.images.elements import MAX_FRAME

        side = int(MAX_FRAME**0.5)
        pixels = (np.arange(side * side, dtype=np.uint32) % 4096).astype(np.uint16).reshape(side, side)
        small, out = Image.fromarray((pixels >> 4).astype(np.uint8)), io.BytesIO()
        if kind == "rle":
            runs = b"\x00a\xffb" * (side * side // 3)
            content = stream(struct.pack("<16I", 1, 64, *[0] * 14) + runs + b"\x00a" * 4, uid.RLELossless, side, side)
        elif kind.startswith("JPEG"):
            options: dict[str, Any] = {"no_jp2": True, "irreversible": False} if kind == "JPEG2000" else {}
            small.save(out, kind, **options)
            content = stream(out.getvalue(), uid.JPEG2000Lossless if options else uid.JPEGBaseline8Bit, side, side)
        else:
            content = dicom(pixels, **_header(kind, pixels))
        (folder / "study").write_bytes(content)

    return made


def _page(size: int, count: int) -> Callable[[Path], None]:
    """A table of one value, ``count`` times."""

    def made(folder: Path) -> None:
        images = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([bytes(size)], pa.binary()))
        table = pa.table({"image": images, "caption": [str(number) for number in range(count)]})
        parquet.write_table(table, folder / "train.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)

    return made


def _json(folder: Path) -> None:
    """A list of as many bytes and values as are accepted, one of them no Latin letter, which makes every character four bytes."""
    head = '[{"image":"a","caption":"\U0001fac1"}'.encode()
    (folder / "p.json").write_bytes(head + b',{"":[]}' * 3_300_000 + b',"' + b"x" * (100 << 20) + b'"]')


def _pickle(folder: Path) -> None:
    (folder / "qas").mkdir()
    (folder / "qas" / "train_vqa.pkl").write_bytes(b"\x80\x04(" + b"}" * 1_999_000 + b"l.")


def _safetensors(folder: Path) -> None:
    entries = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(99_000))
    header = f"{{{entries}}}".encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def _pth(folder: Path) -> None:
    heads = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    (folder / "x.pth").write_bytes(heads + b"\x80\x02(" + b"}" * 990_000 + b"l." + pickle.dumps([], 2))


def _tokenizer(folder: Path) -> None:
    train_tokenizer(["a lung"], 60).save(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    first = len(values["model"]["vocab"])
    values["model"]["vocab"] |= {f"t{number}": number for number in range(first, 850_000)}
    (folder / "tokenizer.json").write_text(json.dumps(values))


def _yaml(folder: Path) -> None:
    (folder / "c.yaml").write_text("a: " + "[" * 16_000)


CLASSES: dict[str, Callable[[Path], None]] = {
    "PNG, RGB": _image("RGB", "PNG"),
    "PNG, RGBA": _image("RGBA", "PNG"),
    "PNG, 16 bits": _image("I;16", "PNG"),
    "TIFF, float": _image("F", "TIFF"),
    "TIFF, float, deflated": _image("F", "TIFF", compression="tiff_adobe_deflate"),
    "WebP": _image("RGBA", "WEBP", 16_000 * 16_000, lossless=True),
    "JPEG, scans": _scans,
    "DICOM, window": _dicom("window"),
    "DICOM, two tables, not square": _dicom("tables"),
    "DICOM, 16-bit colour": _dicom("RGB"),
    "DICOM, YCbCr of partial range": _dicom("YBR_PARTIAL_422"),
    "DICOM, palette": _dicom("palette"),
    "DICOM, JPEG": _dicom("JPEG"),
    "DICOM, JPEG 2000": _dicom("JPEG2000"),
    "DICOM, RLE": _dicom("rle"),
    "parquet, one value": _page(255 << 20, 1),
    "parquet, rows": _page(8 << 20, 3000),
    "JSON": _json,
    "pickle": _pickle,
    "safetensors": _safetensors,
    "weights in .pth": _pth,
    "tokenizer.json": _tokenizer,
    "cluster options": _yaml,
}


def _measure(name: str) -> None:
    """Read one in this process, which ends; prints its cost."""
    with tempfile.TemporaryDirectory(prefix="m2i2-costs-") as folder:
        child = os.fork()
        if child == 0:  # makes the input, so that this process has never held it
            CLASSES[name](Path(folder))
            os._exit(0)
        os.waitpid(child, 0)
        read = _reader(name, Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        begun, outcome = time.process_time(), "read"
        try:
            read()
        except M2I2Error as e:
            outcome = f"refused: {str(e)[:60]}"
        seconds = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        for helper in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():  # it decodes DICOM frames
            lines = Path(f"/proc/{helper}/status").read_text().splitlines()
            peak += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print(f"| {name} | {size / 1e6:.2f} | {peak / 1e9:.2f} | {seconds:.1f} | {outcome} |", flush=True)


def _reader(name: str, folder: Path) -> Callable[[], object]:
    """The reading of an input that lies there already."""
    readers: dict[str, Callable[[], object]] = {
        "parquet": lambda: sum(1 for _ in open_source("captions", "parquet", folder / "train.parquet")),
        "DICOM": lambda: decode_dicom((folder / "study").read_bytes(), "x"),
        "JSON": lambda: list(open_source("captions", "json", folder / "p.json")),
        "pickle": lambda: list(open_source("vqa", "pathvqa", folder)),
        "safetensors": lambda: read_state(folder / "x.safetensors"),
        "weights in .pth": lambda: read_state(folder / "x.pth"),
        "tokenizer.json": lambda: load_tokenizer(folder).encode("a lung " * 1000, 512),
        "cluster options": lambda: read_cluster_file(folder / "c.yaml"),
    }
    return readers.get(name.split(",")[0], lambda: decode((folder / "image").read_bytes(), "x"))


def main() -> int:
    """Measure every class, or those named."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.costs", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CLASSES), help="only this class (may be repeated)")
    torch.set_num_threads(1)
    print("| input | its size, MB | memory, GB | processor time, s | outcome |\n|---|---|---|---|---|", flush=True)
    for name in parser.parse_args().only or CLASSES:
        child = os.fork()
        if child == 0:
            _measure(name)
            os._exit(0)
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
