"""Colours of a DICOM image: palettes, RGB and the kinds of YCbCr, each by what is stored where the header contradicts it."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2i2.data.images.dicom_greys import entries, looked_up
from m2i2.data.images.levels import Findings, NotShown, Values, by_rows, to_bytes, white_of

if TYPE_CHECKING:
    from pydicom import Dataset

AS_YCBCR = "It is labelled RGB, but its stream or its values are those of YCbCr; it was converted to RGB."
AS_RGB = "It is labelled YCbCr, but its stream or its values are those of RGB; it was left as RGB."
FEWER_BITS = "Its colours need fewer bits than the header says; they were taken by the bits that they need."
_BASELINE, _EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93")
_COLOURS = ("Red", "Green", "Blue")
_NEAR = 4
"""Levels by which chroma of nearly grey pixels is off its middle, or channels of nearly grey RGB off each other."""


def palette_picture(stored: Values, dataset: "Dataset", findings: Findings) -> NDArray[np.uint8]:
    """[H, W] indices through the palette, as [H, W, 3] bytes."""
    if "RedPaletteColorLookupTableData" in dataset:
        descriptor = [int(value) for value in dataset.RedPaletteColorLookupTableDescriptor]
        count, first, declared = descriptor[0] or 1 << 16, descriptor[1], descriptor[2]
        if first > 1 << 15 and int(dataset.get("PixelRepresentation") or 0):
            first -= 1 << 16
        named = (f"{colour}PaletteColorLookupTableData" for colour in _COLOURS)
        tables = [entries(dataset[name].value, count, dataset).astype(np.uint16) for name in named]
        colours = np.stack([looked_up(stored, table, first) for table in tables], axis=2)
        highest = max(int(table.max()) for table in tables)
    else:
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(stored, dataset)[..., :3]
        declared, highest = 8 * colours.itemsize, int(colours.max())
    return _by_bits(colours, highest, declared, findings)


def colour_picture(stored: Values, dataset: "Dataset", stream: bytes, findings: Findings) -> NDArray[np.uint8]:
    """[H, W, 3] decoded samples, in whichever colour space, as RGB bytes; ``stream``: the compressed frame, or nothing."""
    declared = str(dataset.PhotometricInterpretation)
    bits = int(dataset.get("BitsStored") or 8 * stored.itemsize)
    samples = _by_bits(stored, int(stored.max()), bits, findings)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    space = _space(declared, syntax, stream, samples)
    if declared == "RGB" and space != "RGB":
        findings.doubt(AS_YCBCR)
    elif declared != "RGB" and space == "RGB" and syntax not in _JPEG_2000:
        findings.doubt(AS_RGB)
    return samples if space == "RGB" else _from_ycbcr(samples, partial=space == "PARTIAL")


def _by_bits(samples: Values, highest: int, declared: int, findings: Findings) -> NDArray[np.uint8]:
    """Samples as bytes by their declared bits, or by those that they need (`white_of`)."""
    if int(samples.min()) < 0:
        raise NotShown("its colours are negative")
    white = white_of(highest, declared)
    if white != (1 << declared) - 1:
        findings.remarks.append(FEWER_BITS)
    return samples.astype(np.uint8) if white == 255 else to_bytes(samples, 0, white)


def _space(declared: str, syntax: str, stream: bytes, samples: NDArray[np.uint8]) -> str:
    """RGB, YBR (full range) or PARTIAL: the colour space of decoded samples. NotShown for one that is not known."""
    if syntax in _JPEG_2000:
        if declared in ("YBR_ICT", "YBR_RCT", "RGB") or _is_transformed(stream):
            return "RGB"  # the decoder undoes what the codestream says
        return "YBR"
    if declared in ("YBR_ICT", "YBR_RCT"):
        raise NotShown("JPEG 2000's colours without JPEG 2000")
    if declared == "YBR_PARTIAL_420" and not stream:
        raise NotShown("YBR_PARTIAL_420 is a kind of video's")
    if syntax in (_BASELINE, _EXTENDED) and stream:
        told = _told_by_jpeg(stream)
        if told:
            return told
    if declared == "RGB":
        return "YBR" if syntax in (_BASELINE, _EXTENDED) and _looks_like_ycbcr(samples) else "RGB"
    if _looks_like_rgb(samples):
        return "RGB"
    return "PARTIAL" if declared.startswith("YBR_PARTIAL") and not stream else "YBR"


def _is_transformed(stream: bytes) -> bool:
    """Whether a JPEG 2000 stream's default coding style has the multiple component transform (ITU-T T.800, A.6.1)."""
    at = stream.find(b"\xff\x52")
    return 0 < at < len(stream) - 9 and stream[at + 8] == 1


def _told_by_jpeg(stream: bytes) -> str:
    """RGB or YBR as the markers of a JPEG say; empty where they leave it open.

    Adobe's marker says it (0: RGB, 1: YCbCr), JFIF's means YCbCr, components called R, G and B are those, and chroma of its
    own size is chroma (ITU-T T.871, T.872; libjpeg's default_decompress_parms).
    """
    place, found = 2, ""
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4], "big")
        content = stream[place + 4 : place + 2 + length]
        if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            return "YBR" if content[11] else "RGB"
        if marker == 0xE0 and content.startswith(b"JFIF"):
            found = "YBR"
        if 0xC0 <= marker <= 0xC2 and len(content) >= 15 and content[5] == 3:
            names, sizes = content[6::3][:3], content[7::3][:3]
            if names in (b"RGB", b"rgb"):
                return "RGB"
            return "YBR" if found or len(set(sizes)) > 1 else ""
        if marker == 0xDA or length < 2:
            break
        place += 2 + length
    return found


def _off(samples: NDArray[np.uint8], channel: int, other: int | None) -> float:
    """By how many levels most pixels of a channel are off another one, or off the middle of chroma."""
    step = max(1, samples.shape[0] * samples.shape[1] >> 16)
    one = samples[..., channel].reshape(-1)[::step].astype(np.int16)
    two = 128 if other is None else samples[..., other].reshape(-1)[::step].astype(np.int16)
    return float(np.quantile(np.abs(one - two), 0.8))


def _looks_like_ycbcr(samples: NDArray[np.uint8]) -> bool:
    """Whether most pixels are grey if the samples are YCbCr, and not if they are RGB."""
    return max(_off(samples, 1, None), _off(samples, 2, None)) <= _NEAR < max(_off(samples, 0, 1), _off(samples, 0, 2))


def _looks_like_rgb(samples: NDArray[np.uint8]) -> bool:
    """Whether most pixels are grey if the samples are RGB, and not if they are YCbCr."""
    return max(_off(samples, 0, 1), _off(samples, 0, 2)) <= _NEAR < max(_off(samples, 1, None), _off(samples, 2, None))


def _from_ycbcr(samples: NDArray[np.uint8], partial: bool) -> NDArray[np.uint8]:
    """ITU-R BT.601's YCbCr to RGB; ``partial``: black is 16, white is 235, chroma spans 16 to 240 (PS3.3 C.7.6.3.1.2)."""
    from pydicom.pixels import convert_color_space

    def converted(part: Values) -> Values:
        if partial:
            scaled = part.astype(np.float64) - (16, 128, 128)
            scaled = scaled * (255 / 219, 255 / 224, 255 / 224) + (0, 128, 128)
            part = scaled.clip(0, 255).round().astype(np.uint8)
        return convert_color_space(part, "YBR_FULL", "RGB")

    return by_rows(samples, converted)
