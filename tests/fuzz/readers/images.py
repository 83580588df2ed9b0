"""The reader of images, in every format that it takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2i2.data.images.decoding import decode
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import mutated_bytes
from tests.fuzz.readers.pictures import read_shown

_WORDS = (
    *(
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda\x00\x08\x01",
        b"\xff\xe1",
        b"Exif\0\0",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"\xff\xc2",
        b"\xff\xdd",
    ),
    *(
        b"IHDR",
        b"IDAT",
        b"eXIf",
        b"acTL",
        b"fcTL",
        b"PLTE",
        b"tRNS",
        b"zTXt",
        b"iCCP",
        b"GIF89a",
        b"!\xff\x0bNETSCAPE2.0",
        b"RIFF",
        b"VP8X",
    ),
)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _image(folder: Path) -> Opened:
    values = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    colour = Image.fromarray(values)
    grey, wide = colour.convert("L"), Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    seeds = [
        _encoded(colour, "JPEG", exif=exif),
        _encoded(grey, "JPEG", progressive=True),
        _encoded(colour.convert("CMYK"), "JPEG"),
        _encoded(colour, "PNG", exif=exif),
        _encoded(colour.convert("P"), "PNG", transparency=3),
        _encoded(wide, "PNG"),
        _encoded(colour.convert("LA"), "PNG", interlace=1),
        _encoded(colour.convert("P"), "GIF", save_all=True, append_images=[colour.convert("P")]),
        *(_encoded(colour, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        _encoded(Image.fromarray(values[..., 0].astype(np.float32)), "TIFF"),
        _encoded(grey.convert("1"), "TIFF", compression="group4"),
        _encoded(colour, "BMP"),
        _encoded(colour, "PPM"),
        _encoded(colour, "WEBP", lossless=True, exif=exif),
        _encoded(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
    ]

    def read(data: bytes) -> None:
        decoded = decode(data, "x", 8, max_pixels=1 << 20)
        assert decoded.mode == "RGB" and min(decoded.size) > 0
        read_shown(data)

    return Opened(seeds, read)


READERS = [Reader("images", _image, lambda seeds: mutated_bytes(seeds, _WORDS))]
