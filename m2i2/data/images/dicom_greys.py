"""Greys of a DICOM image as a viewer shows them: stored values through rescale and window, or through tables, to bytes.

PS3.3 C.11.1 (modality), C.11.2 (values of interest), C.7.6.16.2 (functional groups). Where a declaration contradicts what is
stored, what is stored decides, and the contradiction is reported.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2i2.data.images.levels import (
    OUTLIERS,
    Findings,
    NotShown,
    Values,
    by_rows,
    nearly_uniform,
    to_bytes,
    value_range,
    varied,
    white_of,
)

if TYPE_CHECKING:
    from pydicom import Dataset

INVALID = "Its window is not a valid one; the whole range of its greys is shown."
BESIDE = "Its window lies beside its values; the whole range of its greys is shown."
EMPTY_TABLE = "Its VOI table shows next to nothing of its values; the whole range of its greys is shown."
SLOPE_OF_0 = "Its rescale slope is 0, which would make all greys equal; it was taken as 1."


def grey_picture(stored: Values, dataset: "Dataset", findings: Findings) -> NDArray[np.uint8]:
    """[H, W] stored values of the first frame as bytes, 0 dark, whatever the photometric interpretation."""
    values = _modality(stored, dataset, findings)
    if not np.isfinite(values).all():
        raise NotShown("it holds values that are not finite")
    grey = _voi(values, dataset, findings)
    if grey is None:
        seen = values[inside] if (inside := _inside(stored, dataset)).any() else values
        grey = to_bytes(values, *value_range(seen))
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _modality(stored: Values, dataset: "Dataset", findings: Findings) -> Values:
    """Stored values as what they measure: through the modality table or slope and intercept, where there are."""
    if dataset.get("ModalityLUTSequence"):
        table, first, _ = table_of(dataset.ModalityLUTSequence[0], dataset)
        return looked_up(stored, table, first)
    home = home_of(dataset, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = _number(home.get("RescaleSlope")), _number(home.get("RescaleIntercept"))
    if slope == 0:
        findings.doubt(SLOPE_OF_0)
        slope = 1.0
    if (slope is None or slope == 1) and not intercept:
        return stored
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi(values: Values, dataset: "Dataset", findings: Findings) -> NDArray[np.uint8] | None:
    """Greys through the first VOI table or window; None where there is none, or none that shows anything."""
    home = home_of(dataset, "FrameVOILUTSequence", "WindowCenter")
    try:
        if dataset.get("VOILUTSequence"):
            table, first, declared = table_of(dataset.VOILUTSequence[0], dataset)
            shown, failed = to_bytes(looked_up(values, table, first), 0, white_of(float(table.max()), declared)), EMPTY_TABLE
        elif home.get("WindowCenter") is not None and home.get("WindowWidth") is not None:
            shown, failed = _windowed(values, home), BESIDE
        else:
            return None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError):
        findings.doubt(INVALID)
        return None
    if nearly_uniform(Image.fromarray(shown), OUTLIERS) and varied(values):
        findings.doubt(failed)
        return None
    return shown


def _windowed(values: Values, home: "Dataset") -> NDArray[np.uint8]:
    """Greys through the first window; NotShown where it is not a valid one (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = _number(home.WindowCenter), _number(home.WindowWidth)
    function = str(home.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width <= 0 or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise NotShown("no window")
    if function == "SIGMOID":
        where: tuple[float, float] = centre, width

        def shares(part: Values) -> Values:
            return to_bytes(1 / (1 + np.exp((-4 * (part.astype(np.float64) - where[0]) / where[1]).clip(-700, 700))), 0, 1)

        return by_rows(values, shares)
    if function == "LINEAR":
        if width < 1:
            raise NotShown("too narrow a window")
        centre, width = centre - 0.5, width - 1
    low, high = centre - width / 2, centre + width / 2
    if width == 0:
        return np.where(values > centre, np.uint8(255), np.uint8(0))
    return to_bytes(values, low, high)


def _inside(stored: Values, dataset: "Dataset") -> NDArray[np.bool_]:
    """Which pixels belong to the picture and not to its padding."""
    padding, limit = _number(dataset.get("PixelPaddingValue")), _number(dataset.get("PixelPaddingRangeLimit"))
    if padding is None:
        return np.ones(stored.shape, dtype=bool)
    low, high = sorted((padding, padding if limit is None else limit))
    inside: NDArray[np.bool_] = (stored < low) | (stored > high)
    return inside


def home_of(dataset: "Dataset", group: str, keyword: str) -> "Dataset":
    """Where a value stands that may stand in the functional groups of the first frame, in those of all, or in the file."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for first in list(dataset.get(groups) or ())[:1]:
            for item in list(first.get(group) or ())[:1]:
                if item.get(keyword) is not None:
                    return item
    return dataset


def _number(value: Any) -> float | None:
    """A number, the first of several; None for none, or for something else."""
    if isinstance(value, list | tuple) or (hasattr(value, "__iter__") and not isinstance(value, str | bytes)):
        value = next(iter(value), None)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def table_of(item: "Dataset", dataset: "Dataset") -> tuple[Values, int, int]:
    """(entries, value that the first one is for, declared bits) of a modality or VOI table."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        return entries(data, count or 1 << 16, dataset), first, bits
    table = np.asarray(list(data) if hasattr(data, "__iter__") else [data], dtype=np.int64) & 0xFFFF
    if not table.size:
        raise NotShown("a table without entries")
    return table[: count or 1 << 16], first, bits


def entries(data: bytes, count: int, dataset: "Dataset") -> Values:
    """The entries of a table, one per word or one per byte, as many bytes as there are tell; NotShown for too few."""
    little = dataset.original_encoding[1] is not False
    if len(data) >= 2 * count:
        return np.frombuffer(data[: 2 * count], dtype="<u2" if little else ">u2").astype(np.int64)
    if len(data) >= count:
        table = np.frombuffer(data[: count + count % 2], dtype=np.uint8)
        if not little and len(table) % 2 == 0:
            table = table.reshape(-1, 2)[:, ::-1].reshape(-1)  # bytes of big-endian words
        return table[:count].astype(np.int64)
    raise NotShown("a table with fewer entries than it declares")


def looked_up(values: Values, table: Values, first: int) -> Values:
    """Every value's entry of a table whose first one is for ``first``; values beyond it take its ends."""

    def part(some: Values) -> Values:
        places = np.floor(some).clip(first, first + len(table) - 1) - first
        return table[places.astype(np.int64)]

    return by_rows(values, part)
