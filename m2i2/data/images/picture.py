"""The one way from whatever holds a picture to its pixels: a file, bytes, a PIL image, a numpy array, a tensor."""

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from m2i2.data.images.decoding import MAX_BYTES, MAX_PIXELS, decode, decode_opened
from m2i2.data.images.dicom import decode_dicom, is_dicom
from m2i2.data.images.levels import UNIFORM, Findings, NotShown, Values, nearly_uniform, varied
from m2i2.data.images.modes import over_background, wide_to_rgb
from m2i2.errors import MOST_MESSAGE, M2I2Error, plain
from m2i2.files import read_bytes

PictureSource = str | Path | bytes | Image.Image | Values | Tensor
_SHARE_OF_WHITE = 1 / 16
"""Floats between 0 and 1 that reach beyond it are shares of white; darker ones are some other quantity, and stretched."""
_FOREIGN = (
    (re.compile(rb"\x89HDF"), "HDF5 data, not a picture; write its images as PNG files"),
    (re.compile(rb"NRRD00"), "an NRRD volume, not a picture; write the slices that you need as PNG or DICOM files"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the picture itself; fetch it with git lfs pull"),
    (re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE), "a web page, not a picture; the download went wrong"),
)


@dataclass(frozen=True)
class Picture:
    """Pixels, and what the user must know of them."""

    image: Image.Image
    """8-bit, RGB."""
    remarks: tuple[str, ...] = ()
    """A sentence each."""
    doubts: tuple[str, ...] = ()
    """Those of them that may mean that the picture is wrong."""


def open_picture(source: PictureSource, name: str = "given", max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a file, its bytes (called ``name``), a PIL image, or pixels; else M2I2Error.

    Pixels are arrays [H, W], [H, W, C] or [C, H, W] and tensors [H, W], [C, H, W] or [H, W, C], C of 1, 3 or 4 (alpha). Bytes
    and booleans are taken as they are, floats between 0 and 1 as shares of white, everything else is stretched over its range,
    as the pixels of a file are.
    """
    if isinstance(source, bytes):
        return read_picture(source, name, max_pixels=max_pixels)
    if isinstance(source, str | Path):
        try:
            return read_picture(read_bytes(Path(source), MAX_BYTES), str(source), max_pixels=max_pixels)
        except M2I2Error:
            raise
        except (OSError, ValueError) as e:
            raise M2I2Error(f"Cannot read the image {source}: {getattr(e, 'strerror', None) or e}.") from e
    found = Findings()
    if isinstance(source, Image.Image):
        image = decode_opened(source, name, max_pixels, found)
    elif isinstance(source, np.ndarray | Tensor):
        image = _of_pixels(source, name, max_pixels, found)
    else:
        raise M2I2Error(
            f"The image {name} is {type(source).__name__}; a path, bytes, a PIL image, a numpy array or a tensor is needed."
        )
    return Picture(image, tuple(found.remarks), tuple(found.doubts))


def read_picture(encoded: bytes, name: str, smallest_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in the bytes of a file, DICOM or any other (see `decode`); M2I2Error names ``name`` and what it is instead."""
    if is_dicom(encoded):
        radiograph = decode_dicom(encoded, name, max_pixels)
        return Picture(radiograph.image, radiograph.remarks, radiograph.doubts)
    if foreign := what_it_is(encoded):
        raise M2I2Error(f"The image {name} is {foreign}.")
    found = Findings()
    image = decode(encoded, name, smallest_side, max_pixels, findings=found)
    return Picture(image, tuple(found.remarks), tuple(found.doubts))


def opened(source: PictureSource, name: str = "given") -> Image.Image:
    """The RGB image of `open_picture`; doubts about it are Python warnings."""
    picture = open_picture(source, name)
    for doubt in picture.doubts:
        what = plain(str(source if isinstance(source, str | Path) else name), MOST_MESSAGE)
        warnings.warn(f"The image {what}: {doubt}", stacklevel=3)
    return picture.image


def what_it_is(encoded: bytes) -> str:
    """What the bytes are that no picture is, and what to do; empty for what may be one."""
    if not encoded:
        return "an empty file (0 bytes); copy it again"
    if encoded[:4] == bytes(4) and not encoded.strip(b"\0"):
        return f"{len(encoded)} zero bytes; the copy was cut off or the disk is damaged, copy it again"
    if _is_nifti(encoded):
        return "a NIfTI volume, not a picture; write the slices that you need as PNG files"
    if encoded.startswith(b"\x1f\x8b"):
        try:
            inner = zlib.decompressobj(31).decompress(encoded[:65536], 1024)
        except zlib.error:
            inner = b""
        if _is_nifti(inner):
            return "a NIfTI volume (.nii.gz), not a picture; write the slices that you need as PNG files"
        return "compressed (gzip); unpack it first"
    return next((what for pattern, what in _FOREIGN if pattern.match(encoded[:64])), "")


def _is_nifti(encoded: bytes) -> bool:
    """Whether bytes begin with the header of NIfTI-1 (348 bytes, mark at 344) or NIfTI-2 (540, mark at 4)."""
    if len(encoded) < 348:
        return False
    sizes = {struct.unpack_from(order + "i", encoded)[0] for order in "<>"}
    return (348 in sizes and encoded[344:347] in (b"n+1", b"ni1")) or (540 in sizes and encoded[4:7] in (b"n+2", b"ni2"))


def _of_pixels(source: Values | Tensor, name: str, max_pixels: int, found: Findings) -> Image.Image:
    channels_first = isinstance(source, Tensor)
    if isinstance(source, Tensor):
        plain = source.detach().cpu()
        values: Values = (plain.float() if plain.is_floating_point() else plain).numpy()
    else:
        values = source
    if values.dtype.kind not in "buif" or values.ndim not in (2, 3) or not values.size:
        raise M2I2Error(
            f"The image {name} is {type(source).__name__} of {values.dtype} {list(values.shape)}; one picture of numbers, "
            f"[H, W], [H, W, C] or [C, H, W], is needed."
        )
    if values.ndim == 3:
        values = _channels_last(values, channels_first, name)
    if values.shape[0] * values.shape[1] > max_pixels:
        raise M2I2Error(f"The image {name} has {values.shape[1]} x {values.shape[0]} pixels, more than the bound of {max_pixels}.")
    try:
        image = _to_image(values, found)
    except NotShown as e:
        raise M2I2Error(f"The image {name} cannot be shown: {e}.") from e
    if nearly_uniform(image) and varied(values):
        found.doubt(UNIFORM)
    return image


def _channels_last(values: Values, channels_first: bool, name: str) -> Values:
    """[H, W] or [H, W, 3 or 4] of pixels whose channels are first or last; first where both could be and it is a tensor."""
    first, last = values.shape[0] in (1, 3, 4), values.shape[2] in (1, 3, 4)
    if not first and not last:
        raise M2I2Error(f"The image {name} is {list(values.shape)}; 1, 3 or 4 channels must come first or last.")
    if first and (channels_first or not last):
        values = values.transpose(1, 2, 0)
    return values[..., 0] if values.shape[2] == 1 else values


def _to_image(values: Values, found: Findings) -> Image.Image:
    """[H, W] or [H, W, 3 or 4] as RGB."""
    kind = values.dtype.kind
    if kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    elif kind == "f":
        low, high = float(values.min()), float(values.max())
        if low >= 0 and _SHARE_OF_WHITE < high <= 1:
            values = (values.astype(np.float64) * 255).round().astype(np.uint8)
        elif values.ndim == 3 and low < 0:
            raise NotShown("its colours are negative, as if they were normalised; give pixels, not the model's input")
    if values.dtype == np.uint8:
        content: Any = np.ascontiguousarray(values)
        if values.ndim == 3 and values.shape[2] == 4:
            return over_background(Image.fromarray(content), found)
        return Image.fromarray(content).convert("RGB")
    if values.ndim == 3 and values.shape[2] == 4 and values.dtype != np.uint16:
        raise NotShown(f"its four channels are {values.dtype}; give them as bytes, 16-bit numbers or shares of white")
    return wide_to_rgb(values, found)
