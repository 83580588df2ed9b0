"""Stored values of any depth to 8 bits, and whether a picture still shows what its pixels hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[Any]

OUTLIERS = 0.001
"""Share of the values at either end that may lie far from the others without a say in what is black and white."""
FEWEST = 64
"""Values below which none is an outlier."""
_AT_ONCE = 1 << 22
"""Values that are converted at a time."""
UNIFORM_LEVELS = 8
"""Levels of 256 that a picture's inner 98 % span at least, if it shows anything."""
VARIED_VALUES = 8
"""Different values from which on pixels count as varied."""
DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bits that samples have in practice."""
UNIFORM = "It is nearly uniform although its pixels vary; look at it."
"""Said of a picture that shows next to nothing, whatever the cause."""


class NotShown(ValueError):
    """Why pixels cannot be shown, in words of ours that quote nothing of a header."""


@dataclass
class Findings:
    """What the user must know of a picture, a sentence each."""

    remarks: list[str] = field(default_factory=list)
    """All of it."""
    doubts: list[str] = field(default_factory=list)
    """What of it may mean that the picture is wrong: those pictures are listed one by one."""

    def doubt(self, sentence: str) -> None:
        """Add a sentence to both lists."""
        self.remarks.append(sentence)
        self.doubts.append(sentence)


def value_range(values: Values) -> tuple[float, float]:
    """The values that become black and white: the lowest and the highest.

    Where the outermost 0.1 % at an end (one value at least) lie further out than the span of all others, they are outliers,
    such as hot pixels, and the range ends before them. NotShown for values that are not finite.
    """
    flat = values.reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    if not np.isfinite(high - low):
        raise NotShown("it holds values that are not finite")
    if flat.size < FEWEST:
        return low, high
    count = max(1, int(flat.size * OUTLIERS))
    ordered = np.partition(flat, (count, flat.size - 1 - count))
    inner_low, inner_high = float(ordered[count]), float(ordered[-1 - count])
    span = inner_high - inner_low
    if span > 0 and low < inner_low - span:
        low = float(flat[flat >= inner_low - span].min())
    if span > 0 and high > inner_high + span:
        high = float(flat[flat <= inner_high + span].max())
    return low, high


def to_bytes(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    """``values`` with ``low`` and what lies below as 0, ``high`` and what lies above as 255."""

    def scaled(part: Values) -> Values:
        shares = part.astype(np.float64)
        shares -= low
        shares *= 255.0 / max(high - low, 1e-9)
        return shares.clip(0, 255, out=shares).round(out=shares).astype(np.uint8)

    return by_rows(values, scaled)


def by_rows(values: Values, function: Callable[[Values], Values]) -> Values:
    """``function`` of [H, ...] values, some rows at a time: in float64 a whole picture would take eight times its bytes."""
    rows = max(1, _AT_ONCE // max(1, values[0].size))
    if len(values) <= rows:
        return function(values)
    first = function(values[:rows])
    out = np.empty((len(values), *first.shape[1:]), dtype=first.dtype)
    out[:rows] = first
    for start in range(rows, len(values), rows):
        out[start : start + rows] = function(values[start : start + rows])
    return out


def stretched(values: Values) -> NDArray[np.uint8]:
    """Values of any integer or floating type over their range as bytes; all channels of a colour picture over one range."""
    return to_bytes(values, *value_range(values))


def white_of(highest: float, declared: int) -> int:
    """The value of white, by the ``declared`` bits or, where ``highest`` does not fit them, by the bits that it needs.

    It does not fit where it is larger, or reaches no quarter of them (16 bits declared, values of 8 or 12).
    """
    white = (1 << declared) - 1
    if (declared <= 8 and highest <= white) or white // 4 < highest <= white:
        return white
    return next(((1 << bits) - 1 for bits in DEPTHS if highest < 1 << bits), white)


def varied(values: Values) -> bool:
    """Whether stored values differ enough to show something."""
    flat = values.reshape(-1)
    return len(np.unique(flat[:: max(1, flat.size >> 16)])) >= VARIED_VALUES


def nearly_uniform(image: Image.Image, outside: float = 0.01) -> bool:
    """Whether all pixels of an 8-bit image but a share ``outside`` (one at least) at either end are alike in every channel.

    Alike is within `UNIFORM_LEVELS`.
    """
    pixels = image.width * image.height
    counts = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256).cumsum(axis=1)
    edge = max(outside * pixels, float(pixels >= FEWEST))
    low = (counts <= edge).sum(axis=1)
    high = (counts < pixels - edge).sum(axis=1)
    return bool((high - low < UNIFORM_LEVELS).all())
