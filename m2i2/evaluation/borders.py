"""Borders of one grey, which the same image may have in one set and lack in another."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TOLERANCE = 12
"""Largest difference of the grey values (0 to 255) in a row or column of a border."""
_LEAST = 0.25
"""Part of the width and of the height that must remain: an empty sheet with a marker on it is more than its marker."""


def without_borders(image: Image.Image) -> Image.Image:
    """A grey image (mode L) without the outer rows and columns that are each of one grey; whole if too little would remain."""
    pixels = np.asarray(image)
    top, left, (bottom, right) = 0, 0, pixels.shape
    before = None
    while before != (top, left, bottom, right):
        before = top, left, bottom, right
        first, last = _ends(pixels[top:bottom, left:right], 1)
        top, bottom = top + first, bottom - last
        first, last = _ends(pixels[top:bottom, left:right], 0)
        left, right = left + first, right - last
        if bottom - top < _LEAST * image.height or right - left < _LEAST * image.width:
            return image
    return image.crop((left, top, right, bottom))


def _ends(pixels: NDArray[np.uint8], along: int) -> tuple[int, int]:
    """How many rows (``along`` 1) or columns (0) at the start and at the end are each of one grey; zeros if all are."""
    varied = np.flatnonzero(pixels.max(axis=along).astype(int) - pixels.min(axis=along) > TOLERANCE)
    return (int(varied[0]), pixels.shape[1 - along] - 1 - int(varied[-1])) if len(varied) else (0, 0)
