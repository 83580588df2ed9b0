"""A map over patches as a picture: warm colours over the grey image."""

import numpy as np
from PIL import Image
from torch import Tensor

_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)
"""Five stops of matplotlib's colour map ``inferno``."""


def heat(values: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [..., 3] uint8 colours, dark for 0 and light for 1."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, stops, _COLOURS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def overlay(image: Image.Image, cam: Tensor, strength: float = 0.6) -> Image.Image:
    """A map [side, side] over an RGB image, interpolated (bicubic) to its size; the hottest place is the lightest.

    ``strength``: the share of the colours where the map is hottest; where it is 0, the image stays as it is.
    """
    values = cam.cpu().numpy().astype(np.float32)
    grown = np.asarray(Image.fromarray(values).resize(image.size, Image.Resampling.BICUBIC)).clip(0, None)
    share = (grown / max(float(grown.max()), 1e-30))[..., None]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    mixed = pixels + strength * share * (heat(share[..., 0]) - pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))
