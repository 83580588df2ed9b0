"""Encoded images to RGB pixels, with bounds: whatever the file holds, the outcome is an 8-bit RGB image or an M2I2Error."""

import importlib.util
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from m2i2.data.images.bounds import PlainJpeg, check_bounds, check_directory, check_scans, plain_jpeg
from m2i2.data.images.levels import UNIFORM, Findings, NotShown, nearly_uniform, varied
from m2i2.data.images.memory import check_memory
from m2i2.data.images.modes import load, to_rgb, wide_greys, wide_to_rgb
from m2i2.errors import M2I2Error

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""

Image.MAX_IMAGE_PIXELS = None  # our own bound applies, as an error with a name
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Read by decoders in Pillow itself; others start programs (EPS runs Ghostscript) or are of no use here."""
MAX_BYTES = 1 << 30
"""No image file is larger."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""
_PLAIN_PIXELS = 1 << 22
"""Larger JPEGs, rare in shards, go the usual way."""


def decode(
    encoded: bytes,
    name: str,
    smallest_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    *,
    keep_grey: bool = False,
    findings: Findings | None = None,
) -> Image.Image:
    """RGB pixels of an encoded image, turned upright by its EXIF orientation; of several frames or pages, the first.

    ``smallest_side``: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at least
    this long. ``keep_grey``: an 8-bit grey image stays one (mode L). Values of more than 8 bits are stretched over their range
    (`levels.value_range`); white shows through transparent pixels. ``findings``: the user must know of what is added there.
    M2I2Error names ``name`` for what cannot be decoded.
    """
    try:
        check_bounds(encoded, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise M2I2Error(
                    f"The image {name} has {width} x {height} pixels, more than the bound of {max_pixels}; scale it down first."
                )
            if isinstance(image, TiffImageFile) and image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0) > max_pixels:
                raise M2I2Error(f"The image {name} has tiles of more than {max_pixels} pixels; save it again.")
            check_memory(image, name)
            check_scans(encoded, width * height, name)
            if smallest_side and image.format == "JPEG":
                shrink = min(width, height) / smallest_side
                image.draft("RGB" if image.mode != "L" else "L", (round(width / shrink), round(height / shrink)))
            return _shown(image, load(image, encoded), name, keep_grey, findings)
    except M2I2Error:
        raise
    except NotShown as e:
        raise M2I2Error(f"The image {name} cannot be decoded: {e}.") from e
    except UnidentifiedImageError as e:
        raise M2I2Error(
            f"The image {name} cannot be decoded: it is damaged, or its format is not supported ({', '.join(FORMATS)} are)."
        ) from e
    except Exception as e:  # Pillow's decoders raise almost anything on damaged files
        raise M2I2Error(f"The image {name} cannot be decoded ({type(e).__name__}: {e}); replace or remove it.") from e


def decode_opened(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS, findings: Findings | None = None) -> Image.Image:
    """The RGB pixels of an image that Pillow has opened or made, as `decode` gives those of its file."""
    try:
        if image.width * image.height > max_pixels:
            raise M2I2Error(f"The image {name} has {image.width} x {image.height} pixels, more than the bound of {max_pixels}.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _shown(image, load(image, None), name, False, findings)
    except M2I2Error:
        raise
    except NotShown as e:
        raise M2I2Error(f"The image {name} cannot be decoded: {e}.") from e
    except Exception as e:
        raise M2I2Error(f"The image {name} cannot be decoded ({type(e).__name__}: {e}); replace or remove it.") from e


def _shown(image: Image.Image, wide: NDArray[Any] | None, name: str, keep_grey: bool, findings: Findings | None) -> Image.Image:
    """A loaded image, or its ``wide`` values, upright and in 8 bits."""
    found = Findings() if findings is None else findings
    turn = _UPRIGHT.get(_orientation(image, name))
    wide = wide_greys(image) if wide is None else wide
    if wide is not None:
        picture = wide_to_rgb(wide, found)
    elif keep_grey and image.mode == "L" and "transparency" not in image.info:
        picture = image
    else:
        picture = to_rgb(image, found)
    if findings is not None and nearly_uniform(picture) and varied(np.asarray(image) if wide is None else wide):
        findings.doubt(UNIFORM)
    return picture if turn is None else picture.transpose(turn)


def decode_pixels(encoded: bytes, name: str, smallest_side: int) -> NDArray[np.uint8]:
    """[H, W, C] pixels of an encoded image as `decode` gives them, C is 1 for a grey one.

    JPEGs of the plainest kind, which shards are full of, go to the decoder of torchvision: the same library beneath, with
    less around it. All others, and those it refuses, go the usual way.
    """
    plain = plain_jpeg(encoded)
    if plain and plain.width * plain.height <= _PLAIN_PIXELS and min(plain.width, plain.height) < 2 * smallest_side:
        if not plain.one_scan:
            check_bounds(encoded, name)
        pixels = _decode_plain(encoded, plain)
        if pixels is not None:
            return pixels
    image = np.asarray(decode(encoded, name, smallest_side, keep_grey=True))
    return image[:, :, None] if image.ndim == 2 else image


def _decode_plain(encoded: bytes, plain: PlainJpeg) -> NDArray[np.uint8] | None:
    """[H, W, C] pixels of a JPEG of the plainest kind; None where torchvision's decoder is missing or refuses it."""
    if not _has_decoder():
        return None
    content = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        decoded = torch.ops.image.decode_jpeg(content, plain.channels, False)  # its modes 1 and 3 are grey and RGB
    except RuntimeError:
        return None
    pixels: NDArray[np.uint8] = decoded.permute(1, 2, 0).numpy()
    return pixels if pixels.shape == (plain.height, plain.width, plain.channels) else None


@cache
def _has_decoder() -> bool:
    """Load torchvision's decoders, and nothing else of it: the whole package takes 2 s and 170 MB."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(library)
            except (OSError, RuntimeError):
                continue
    return hasattr(torch.ops.image, "decode_jpeg")


def _orientation(image: Image.Image, name: str) -> int:
    """The EXIF orientation, 1 (upright) where there is none."""
    if "exif" not in image.info and "Raw profile type exif" in image.info:  # as ImageMagick writes it into PNGs
        lines = str(image.info["Raw profile type exif"]).split("\n")[3:]
        image.info["exif"] = bytes.fromhex("".join(lines))
    check_directory(image.info.get("exif", b"").removeprefix(b"Exif\0\0"), name)
    found = image.getexif().get(0x0112, 1)
    return found if isinstance(found, int) else 1


def without_colour(image: Image.Image) -> Image.Image:
    """An RGB image whose channels are equal as one of grey (mode L), any other as it is."""
    red, green, blue = (channel.tobytes() for channel in image.split())
    return image.getchannel(0) if red == green == blue else image
