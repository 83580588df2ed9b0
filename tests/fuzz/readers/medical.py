"""The readers of DICOM files, compressed and not, and of parquet tables."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pydicom
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image
from pyarrow import parquet
from pydicom import uid

from m2i2.data.images.dicom import decode_dicom
from m2i2.data.shards.building import Encoding
from m2i2.data.shards.encoding import encode
from m2i2.data.sources import open_source
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes
from tests.unit.dicom_files import SAMPLES, dicom, stream

_WORDS = (
    *(
        b"\xff\xd8\xff",
        b"\xff\xc0\x00\x0b\x08",
        b"\xff\xc2",
        b"\xff\xc3",
        b"\xff\xda\x00\x08\x01",
        b"\xff\xd9",
        b"\xff\xf7",
        b"\xff\xf8",
    ),
    *(b"\xff\x4f\xff\x51", b"\xff\x52\x00\x0c", b"\xff\x53", b"\xff\x90\x00\x0a", b"\xff\x93", b"\xff\xd9", b"\xff\x5f"),
    *(b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\xff\xff\xff\xff", b"SQ\0\0\xff\xff\xff\xff"),
    *(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00", b"\x28\x00\x02\x00US\x02\x00", b"\x28\x00\x00\x01US\x02\x00"),
    *(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2"),
)


def _dicom(folder: Path) -> Opened:
    ramp = np.arange(0, 4096, 16).reshape(16, 16)
    small = Image.fromarray((ramp // 16).astype(np.uint8))
    jpeg, progressive, wavelets = io.BytesIO(), io.BytesIO(), io.BytesIO()
    small.save(jpeg, "JPEG")
    small.save(progressive, "JPEG", progressive=True)
    small.save(wavelets, "JPEG2000", no_jp2=True, irreversible=False)
    rle = pydicom.dcmread(io.BytesIO(dicom(ramp)))
    rle.compress(uid.RLELossless)
    rle_file = io.BytesIO()
    rle.save_as(rle_file)
    seeds = [
        dicom(ramp),
        dicom(ramp, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 80], WindowWidth=[400, 80]),
        dicom(ramp, PhotometricInterpretation="MONOCHROME1", syntax=uid.ImplicitVRLittleEndian),
        stream(jpeg.getvalue(), uid.JPEGBaseline8Bit, 16, 16),
        stream(progressive.getvalue(), uid.JPEGBaseline8Bit, 16, 16),
        stream(wavelets.getvalue(), uid.JPEG2000Lossless, 16, 16),
        rle_file.getvalue(),
        (SAMPLES / "MR_small_jpeg_ls_lossless.dcm").read_bytes(),
        (SAMPLES / "MR_small_bigendian.dcm").read_bytes(),
    ]

    def read(data: bytes) -> None:
        assert decode_dicom(data, "x", max_pixels=1 << 20).image.mode == "RGB"

    return Opened(seeds, read)


@st.composite
def _changed_stream(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Edits of the pixels' element alone, where the compressed streams lie."""
    data = draw(st.sampled_from(seeds))
    place = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"))
    return data[:place] + draw(mutated_bytes([data[place:]], _WORDS))


def _table(folder: Path, kind: Literal["captions", "vqa"], columns: dict[str, Any]) -> Opened:
    path = folder / "train-00000-of-00001.parquet"
    seeds = []
    options: tuple[dict[str, Any], ...] = (
        {"compression": "snappy"},
        {"compression": "zstd", "row_group_size": 2},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "gzip", "write_page_index": True},
    )
    for one in options:
        out = io.BytesIO()
        parquet.write_table(pa.table(columns), out, **one)
        seeds.append(out.getvalue())
    encoding = Encoding(side=16)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for record in open_source(kind, "parquet", folder):
            encode(record, encoding)

    return Opened(seeds, read)


def _images(count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        out = io.BytesIO()
        Image.fromarray(np.full((16, 16), 40 * number, dtype=np.uint8)).save(out, "PNG")
        found.append({"bytes": out.getvalue(), "path": f"{number}.png"})
    return found


def _captions(folder: Path) -> Opened:
    texts = [["a lung"], ["two", "captions"], ["a heart"], [None], ["last"]]
    return _table(folder, "captions", {"image": _images(5), "caption": texts, "cui": [["C1"]] * 5})


def _questions(folder: Path) -> Opened:
    images = [image for image in _images(2) for _ in range(2)]
    answers = ["yes", "no", "left", "a mass"]
    kinds = ["CLOSED", "CLOSED", "OPEN", "OPEN"]
    return _table(
        folder, "vqa", {"image": images, "question": ["is it?"] * 4, "answer": answers, "answer_type": kinds, "qid": range(4)}
    )


READERS = [
    Reader("DICOM streams", _dicom, either(lambda seeds: mutated_bytes(seeds, _WORDS), _changed_stream, _changed_stream)),
    Reader("captions in parquet", _captions, mutated_bytes),
    Reader("questions in parquet", _questions, mutated_bytes),
]
