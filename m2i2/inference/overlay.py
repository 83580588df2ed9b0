"""A map over patches as a picture: colours over the image, by one scale wherever a map is shown.

The scale tells how much weight a place has relative to the image's mean: up to the mean nothing is coloured, and every
doubling is as many colours further, up to `MOST` times the mean. So pictures of different questions and models compare.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MOST = 16
"""Times the mean of the map: the hottest colour, for everything at and above it."""
TICKS = (1, 2, 4, 8, MOST)
"""Times the mean that a legend names; they are evenly spaced."""
LEGEND = "weight of a place, relative to the mean of the image"
"""What a legend says of the scale."""
_COLOURS = np.array([[150, 60, 220], [225, 45, 110], [250, 125, 20], [255, 226, 60]], dtype=np.float64)
"""Evenly spaced colours of the scale; none is so dark or so light that it is lost on black or on white."""
_STRENGTH = 0.7
"""The largest share of the colours in a picture."""


def scaled(cam: Tensor | np.ndarray) -> np.ndarray:
    """A map [side, side] of weights of any sum -> the place of each on the scale, [side, side] in [0, 1]; 0 up to the mean."""
    values = np.asarray(cam.cpu() if isinstance(cam, Tensor) else cam, dtype=np.float32).clip(0, None)
    times = values / max(float(values.mean()), 1e-30)
    return (np.log2(times.clip(1, MOST)) / math.log2(MOST)).astype(np.float32)


def heat(places: np.ndarray) -> np.ndarray:
    """[...] places on the scale -> [..., 3] uint8 colours."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(places, stops, _COLOURS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def overlay(image: Image.Image, cam: Tensor | np.ndarray) -> Image.Image:
    """A map [side, side] over an RGB image, interpolated (bicubic) to its size; up to the map's mean the image stays as it is."""
    return _mixed(np.asarray(image.convert("RGB")), Image.fromarray(scaled(cam)).resize(image.size, Image.Resampling.BICUBIC))


def scale_bar(width: int, height: int) -> Image.Image:
    """The colours of the scale from left to right, over mid-grey as over an image; the `TICKS` belong evenly below it."""
    places = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return _mixed(np.full((height, width, 3), 110, dtype=np.uint8), Image.fromarray(places))


def with_legend(picture: Image.Image) -> Image.Image:
    """An overlay with the scale in a strip below it, so that nothing is covered; at least 320 pixels wide."""
    width, text, margin = max(320, picture.width), 13, 8
    font = ImageFont.load_default(text)
    made = Image.new("RGB", (width, picture.height + 10 + 2 * text + 3 * margin), "white")
    made.paste(picture, ((width - picture.width) // 2, 0))
    top, length = picture.height + margin, width - 4 * margin
    made.paste(scale_bar(length, 10), (2 * margin, top))
    draw = ImageDraw.Draw(made)
    for number, tick in enumerate(TICKS):
        across = 2 * margin + number * length / (len(TICKS) - 1)
        draw.text((across, top + 13), f"{tick}x", fill=(30, 30, 30), font=font, anchor="ma")
    draw.text((width / 2, top + 16 + text), LEGEND, fill=(30, 30, 30), font=font, anchor="ma")
    return made


def _mixed(pixels: np.ndarray, places: Image.Image) -> Image.Image:
    """The colours of ``places`` over the image ``pixels``, [H, W, 3]; full strength from the middle of the scale."""
    place = np.asarray(places).clip(0, 1)
    share = _STRENGTH * (2 * place).clip(0, 1)[..., None]
    mixed = pixels + share * (heat(place).astype(np.float64) - pixels)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
