"""Pictures by the one door that make_shards, the models and the app use: DICOM files, wide values, arrays, and uniform outcomes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from m2i2.data.images.levels import nearly_uniform, varied
from m2i2.data.images.picture import open_picture
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes

_RAMP = (np.arange(0, 4096, 8).reshape(16, 32)).astype("<u2")
_WORDS = (
    *(b"MONOCHROME1 ", b"MONOCHROME2 ", b"PALETTE COLOR", b"RGB ", b"YBR_FULL", b"YBR_FULL_422", b"YBR_PARTIAL_422", b"YBR_RCT "),
    *(b"DICM", b"\x28\x00\x50\x10DS\x04\x00-900", b"\x28\x00\x53\x10DS\x02\x000 ", b"\x28\x00\x02\x01US\x02\x00\x0f\x00"),
)


def _dicom(**values: Any) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    header = {
        **{"Modality": "DX", "PhotometricInterpretation": "MONOCHROME2", "Rows": 16, "Columns": 32, "SamplesPerPixel": 1},
        **{"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "PixelData": _RAMP.tobytes()},
    }
    compress = values.pop("compress", None)
    for key, value in {**header, **values}.items():
        setattr(dataset, key, value)
    if compress:
        dataset.compress(compress)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def item_of(**values: Any) -> Sequence:
    """A sequence of one item."""
    item = Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    return Sequence([item])


def palette_of(bits: int) -> dict[str, Any]:
    """The header of a picture of 8-bit indices into 256 colours of so many bits a sample."""
    tables: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    tables["PixelData"] = (_RAMP >> 4).astype(np.uint8).tobytes()
    for number, colour in enumerate(("Red", "Green", "Blue")):
        entries = (np.arange(256) * (number + 1) % 256).astype("<u2") << (bits - 8)
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tables[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    return tables


def _seeds() -> list[bytes]:
    colours = np.dstack([_RAMP >> 4, 255 - (_RAMP >> 4), _RAMP >> 5]).astype(np.uint8)
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    colour["PixelData"] = colours.tobytes()  # type: ignore[assignment]
    table = {"LUTDescriptor": [4096, 0, 16], "LUTData": (4095 - np.arange(4096)).astype("<u2").tobytes()}
    return [
        _dicom(),
        _dicom(PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=800, PixelPaddingValue=0),
        _dicom(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter="40", WindowWidth="400", VOILUTFunction="SIGMOID"),
        _dicom(VOILUTSequence=item_of(**table), PixelAspectRatio=["2", "1"]),
        _dicom(ModalityLUTSequence=item_of(ModalityLUTType="US", **table)),
        _dicom(
            SharedFunctionalGroupsSequence=item_of(
                FrameVOILUTSequence=item_of(WindowCenter=40, WindowWidth=400),
                PixelValueTransformationSequence=item_of(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
            )
        ),
        _dicom(PixelData=(_RAMP << 4).tobytes(), HighBit=15),
        _dicom(PixelData=(_RAMP.astype("<i2") - 2000).tobytes(), PixelRepresentation=1, BitsStored=16, HighBit=15),
        _dicom(compress=RLELossless),
        *(_dicom(PhotometricInterpretation=kind, **colour) for kind in ("RGB", "YBR_FULL")),
        _dicom(**palette_of(8)),
        _dicom(**palette_of(16)),
        _dicom()[128:],
        _dicom()[_dicom().index(b"\x08\x00\x60\x00CS") :],
    ]


def _stored(data: bytes) -> Any:
    """The stored values by the libraries alone; None where they do not read them."""
    try:
        if data[128:132] == b"DICM":
            return pydicom.pixels.pixel_array(pydicom.dcmread(io.BytesIO(data)), index=0, raw=True)
        return np.asarray(Image.open(io.BytesIO(data)))
    except Exception:  # they raise almost anything
        return None


def read_shown(data: bytes) -> None:
    """Read a picture by its one door; a uniform one of varied pixels must not be silent."""
    picture = open_picture(data, "x", max_pixels=1 << 20)
    assert picture.image.mode == "RGB" and min(picture.image.size) > 0
    assert set(picture.doubts) <= set(picture.remarks)
    if nearly_uniform(picture.image) and not picture.doubts:
        stored = _stored(data)
        assert stored is None or not varied(stored), "a uniform picture of varied pixels, and not a word of it"


def _dicoms(folder: Path) -> Opened:
    return Opened(_seeds(), read_shown)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _wide(folder: Path) -> Opened:
    grey = Image.fromarray(_RAMP)
    colour = Image.fromarray(np.dstack([_RAMP >> 4, 255 - (_RAMP >> 4), _RAMP >> 5]).astype(np.uint8))
    clear = colour.copy()
    clear.putalpha(Image.fromarray((_RAMP >> 4).astype(np.uint8)))
    seeds = [
        *(_encoded(grey, kind) for kind in ("PNG", "TIFF", "PPM")),
        _encoded(grey, "TIFF", compression="tiff_lzw"),
        _encoded(Image.fromarray(_RAMP.astype(np.float32) / 7), "TIFF"),
        _encoded(Image.fromarray(_RAMP.astype(np.int32) - 2000), "TIFF"),
        _encoded(clear, "PNG"),
        _encoded(clear.convert("LA"), "PNG"),
        _encoded(clear, "TIFF"),
        _encoded(colour.convert("P"), "TIFF"),
        _encoded(colour.convert("P"), "PNG", transparency=bytes(range(256))),
        (Path(__file__).parents[2] / "cases" / "silent" / "rgb16_12bit.png").read_bytes(),
        (Path(__file__).parents[2] / "cases" / "silent" / "signed8.tif").read_bytes(),
        (Path(__file__).parents[2] / "cases" / "silent" / "white_is_zero16.tif").read_bytes(),
    ]
    return Opened(seeds, read_shown)


_CHUNKS = (b"tRNS", b"IHDR", b"sBIT", b"II*\0", b"MM\0*")
_TYPES = ("u1", "u2", "<i2", ">u2", "i4", "u8", "f2", "f4", "f8", "?", "c8", "M8[s]")


@st.composite
def _any_array(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """The bytes of an array file of any type and shape, with values of any size."""
    kind = np.dtype(draw(st.sampled_from(_TYPES)))
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 16]), min_size=0, max_size=4))
    size = int(np.prod(shape)) * kind.itemsize
    data = np.random.default_rng(draw(st.integers(0, 1 << 30))).bytes(size)
    values = np.frombuffer(data, dtype=kind).reshape(shape)
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def _arrays(folder: Path) -> Opened:
    def read(data: bytes) -> None:
        values = np.load(io.BytesIO(data))
        picture = open_picture(values, "x")
        assert picture.image.mode == "RGB"
        if nearly_uniform(picture.image) and not picture.doubts:
            assert not varied(values), "a uniform picture of varied pixels, and not a word of it"

    out = io.BytesIO()
    np.save(out, _RAMP)
    return Opened([out.getvalue()], read)


READERS = [
    Reader("DICOM pictures", _dicoms, lambda seeds: mutated_bytes(seeds, _WORDS)),
    Reader(
        "wide and transparent images", _wide, lambda seeds: mutated_bytes(seeds, (b"tRNS", b"IHDR", b"sBIT", b"II*\0", b"MM\0*"))
    ),
    Reader("arrays", _arrays, either(_any_array)),
]
