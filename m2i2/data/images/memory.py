"""What decoding an image takes, known from its header: bounded before any pixel is decoded."""

from PIL import Image

from m2i2.errors import M2I2Error

MAX_MEMORY = 1 << 30
"""Bytes beyond the file's own that decoding one image may take."""
_COST = {"I": 20, "F": 20, "I;16": 18, "I;16B": 18, "I;16L": 18, "RGBA": 16, "LA": 16, "PA": 16, "La": 16, "RGBa": 16}
"""Bytes a pixel at the peak, by mode: the image, what it becomes on its way to 8-bit RGB, and that. Measured: docs/security.md."""
_PLAIN = 10
"""The same of every other mode: 8 bits a channel without alpha."""
_WEBP = 25
"""The same of WebP, whose decoder keeps canvases of its own."""


def cost_of(mode: str, kind: str | None, *, transparent: bool = False) -> int:
    """Bytes a pixel that decoding takes at its peak, of an image of a mode and a format."""
    cost = _COST.get(mode, _COST["RGBA"] if transparent else _PLAIN)
    return max(cost, _WEBP) if kind == "WEBP" else cost


def check_memory(image: Image.Image, name: str) -> None:
    """M2I2Error for an opened image whose pixels would take more than `MAX_MEMORY`."""
    cost = cost_of(image.mode, image.format, transparent="transparency" in image.info)
    width, height = image.size
    if width * height * cost > MAX_MEMORY:
        raise M2I2Error(
            f"The image {name} has {width} x {height} pixels of mode {image.mode}, whose decoding takes about "
            f"{width * height * cost / 1e9:.1f} GB, more than the bound of {MAX_MEMORY / 1e9:.1f}; scale it down first."
        )
