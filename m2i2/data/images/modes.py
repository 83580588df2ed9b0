"""Pillow's images of every mode to 8-bit RGB: wide values, palettes, alpha, and what Pillow itself reads with half its bits.

16-bit colour is the latter: Pillow keeps the upper bytes. Decoded a second time with the byte order reversed, the lower ones
are where the upper ones were.
"""

import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette, TiffImagePlugin
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from m2i2.data.images.levels import Findings, NotShown, nearly_uniform, stretched, to_bytes, value_range

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
OVER_BLACK = "It shows nothing over white, so that its transparent pixels became black; look at it."
WITHOUT_ALPHA = "It is wholly transparent; its colours are shown without the transparency; look at it."
TRANSPARENT = "It has transparent pixels; white shows through them."
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_OTHER = "L" if sys.byteorder == "big" else "B"
_LOWER_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", _OTHER))
}
"""Raw modes of 16-bit colour, and the ones that read its lower bytes as the upper ones."""
_PHOTOMETRIC, _PLANAR, _COLOUR_MAP, _SAMPLE_FORMAT = 262, 284, 320, 339
"""Tags of TIFF 6.0."""
_MISSING_KINDS = {
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (b"MM", 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
}
"""16-bit greys with white as 0 that Pillow's table of TIFF kinds lacks; like its others, they come uninverted."""
for _kind, _modes in _MISSING_KINDS.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_kind, _modes)


def load(image: Image.Image, encoded: bytes | None) -> NDArray[np.uint16] | None:
    """Decode an opened image; its values [H, W, 3 or 4] where it is 16-bit colour, else None.

    ``encoded``: its file, None to take what Pillow has opened. NotShown for 16-bit colour that cannot be read whole.
    """
    if isinstance(image, TiffImageFile):
        _mend_palette(image)
    raw = _raw_mode(image)
    grey_alpha = raw == "LA;16B" and isinstance(image, PngImageFile)
    if ";16" in raw and raw.startswith(("RGBa", "CMYK")):
        raise NotShown("it is 16-bit colour with premultiplied alpha or in CMYK, which is not supported; save it as RGB")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PLANAR, 1) == 2 and _is_wide_colour(image):
        raise NotShown("its 16-bit channels are stored one after another, which is not supported; save it interleaved")
    if grey_alpha:
        _set_raw_mode(image, "RGBA")  # upper and lower byte of grey, upper and lower byte of alpha
        image.load()
        both = np.asarray(image).astype(np.uint16)
        grey, alpha = both[..., 0] << 8 | both[..., 1], both[..., 2] << 8 | both[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=2)
    if raw not in _LOWER_BYTES:
        image.load()
        return None
    with Image.open(io.BytesIO(_file(image) if encoded is None else encoded), formats=(str(image.format),)) as again:
        _set_raw_mode(again, _LOWER_BYTES[raw])
        lower = np.asarray(again.convert(image.mode), dtype=np.uint16)
    image.load()
    whole: NDArray[np.uint16] = np.left_shift(np.asarray(image).astype(np.uint16), 8) | lower
    return whole


def wide_greys(image: Image.Image) -> NDArray[Any] | None:
    """[H, W] values of a loaded grey image of more than 8 bits or with a sign, dark to bright; None for any other."""
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    signed = image.mode == "L" and tags.get(_SAMPLE_FORMAT) in (2, (2,))
    if image.mode not in _WIDE_MODES and not signed:
        return None
    values = np.asarray(image).view(np.int8) if signed else np.asarray(image)
    if tags.get(_PHOTOMETRIC) != 0:
        return values
    return -values.astype(np.float64 if values.dtype.kind == "f" else np.int64)  # white is 0; 8-bit ones Pillow inverts


def wide_to_rgb(values: NDArray[Any], findings: Findings) -> Image.Image:
    """Values [H, W] or [H, W, 3 or 4] of more than 8 bits as an RGB image; a fourth channel is 16-bit alpha."""
    if values.ndim == 2:
        return Image.fromarray(stretched(values)).convert("RGB")
    if values.shape[2] == 3:
        return Image.fromarray(stretched(values))
    alpha = values[..., 3]
    visible = values[..., :3][alpha > 0] if (alpha > 0).any() else values[..., :3]
    colours = to_bytes(values[..., :3], *value_range(visible))
    return over_background(Image.fromarray(np.dstack([colours, (alpha >> 8).astype(np.uint8)])), findings)


def to_rgb(image: Image.Image, findings: Findings) -> Image.Image:
    """A loaded image of at most 8 bits as RGB, transparent pixels over `BACKGROUND`."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return over_background(image.convert("RGBA"), findings)
    return image.convert("RGB")


def over_background(rgba: Image.Image, findings: Findings) -> Image.Image:
    """An RGBA image over white; where that shows nothing, over black; where that does not either, without its alpha."""
    alpha = rgba.getchannel("A")
    lowest, highest = alpha.getextrema()
    colours = rgba.convert("RGB")
    if lowest == 255:
        return colours
    if highest == 0:
        findings.doubt(WITHOUT_ALPHA)
        return colours
    shown = Image.new("RGB", rgba.size, BACKGROUND)
    shown.paste(colours, mask=alpha)
    if nearly_uniform(shown):
        black = Image.new("RGB", rgba.size)
        black.paste(colours, mask=alpha)
        if not nearly_uniform(black):
            findings.doubt(OVER_BLACK)
            return black
    findings.remarks.append(TRANSPARENT)
    return shown


def _raw_mode(image: Image.Image) -> str:
    """How the bytes of an opened image that is not loaded are laid out, in Pillow's words; empty where it does not tell."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def _file(image: Any) -> bytes:
    """The bytes behind an opened image that is not loaded."""
    place = image.fp.tell()
    image.fp.seek(0)
    content: bytes = image.fp.read()
    image.fp.seek(place)
    return content


def _set_raw_mode(image: Any, raw: str) -> None:
    def changed(arguments: Any) -> Any:
        return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]


def _is_wide_colour(image: TiffImageFile) -> bool:
    bits = image.tag_v2.get(258, (1,))
    return image.mode in ("RGB", "RGBA", "CMYK") and max(bits if isinstance(bits, tuple) else (bits,)) > 8


def _mend_palette(image: TiffImageFile) -> None:
    """A palette of 16-bit entries that hold 8-bit values, as some programs write it, is one of 8 bits."""
    entries = image.tag_v2.get(_COLOUR_MAP, ())
    if image.mode in ("P", "PA") and entries and 0 < max(entries) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(entries))
