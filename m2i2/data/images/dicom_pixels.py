"""The first frame of a DICOM image from stored bits to an RGB picture with square pixels.

What a header leaves out or contradicts is filled in or decided by what is stored, where that is safe; else there is an error.
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

from m2i2.data.images.dicom_colours import colour_picture, palette_picture
from m2i2.data.images.dicom_greys import grey_picture, home_of
from m2i2.data.images.frames import first_frame
from m2i2.data.images.levels import UNIFORM, Findings, NotShown, Values, nearly_uniform, varied
from m2i2.errors import M2I2Error

if TYPE_CHECKING:
    from pydicom import Dataset

NO_PHOTOMETRIC = "It does not say what its values stand for (photometric interpretation); {} was assumed."
ODD_HIGH_BIT = "Its high bit does not fit its values; they were read from the lowest bit."
NOT_SQUARE = "Its pixels are not square; the picture was resampled so that they are."
_KNOWN = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422", "YBR_PARTIAL_420"),
)
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_MOST_STRETCH = 8
"""Larger ratios of a pixel's sides are a fault of the header."""


def to_picture(dataset: "Dataset", name: str, max_pixels: int, findings: Findings) -> Image.Image:
    """The first frame as an RGB image; M2I2Error names ``name`` and a known reason, other errors say that it is damaged."""
    _complete(dataset, name, findings)
    stream = _stream(dataset)
    try:
        stored = _stored(dataset, name, findings)
        photometric = str(dataset.PhotometricInterpretation)
        if stored.ndim == 3:
            pixels = colour_picture(stored, dataset, stream, findings)
        elif photometric == "PALETTE COLOR":
            pixels = palette_picture(stored, dataset, findings)
        else:
            pixels = grey_picture(stored, dataset, findings)
    except NotShown as e:
        raise M2I2Error(f"The DICOM file {name} cannot be shown: {e}.") from e
    image = Image.fromarray(pixels).convert("RGB")
    if nearly_uniform(image) and varied(stored):
        findings.doubt(UNIFORM)
    return _square(image, dataset, name, max_pixels, findings)


def _complete(dataset: "Dataset", name: str, findings: Findings) -> None:
    """Fill in what decoding needs and the rest of the header tells; M2I2Error for what it cannot be decoded without."""
    if not dataset.get("SamplesPerPixel"):
        dataset.SamplesPerPixel = 3 if str(dataset.get("PhotometricInterpretation", "")).upper().startswith(("RGB", "YBR")) else 1
    samples = int(dataset.SamplesPerPixel)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper().replace("PALETTE_COLOR", "PALETTE COLOR")
    if not photometric:
        palette = samples == 1 and "RedPaletteColorLookupTableDescriptor" in dataset
        photometric = "RGB" if samples == 3 else "PALETTE COLOR" if palette else "MONOCHROME2"
        findings.doubt(NO_PHOTOMETRIC.format(photometric))
    if photometric not in _KNOWN:
        raise M2I2Error(
            f"The DICOM file {name} cannot be shown: its photometric interpretation is not one of {', '.join(_KNOWN)}. "
            f"Export it again as one of them."
        )
    if (samples == 3) == photometric.startswith(("MONOCHROME", "PALETTE")):
        raise M2I2Error(
            f"The DICOM file {name} cannot be shown: it has {samples} samples a pixel, and calls them {photometric}. "
            f"Export it again."
        )
    dataset.PhotometricInterpretation = photometric
    if samples == 3 and dataset.get("PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0
    if dataset.get("PixelRepresentation") is None and "PixelData" in dataset:
        dataset.PixelRepresentation = 0
    if str(dataset.file_meta.TransferSyntaxUID) == _JPEG_EXTENDED and int(dataset.get("BitsStored") or 0) > 8:
        from pydicom.pixels import get_decoder

        if not {"pylibjpeg"} & set(get_decoder(_JPEG_EXTENDED).available_plugins):
            raise M2I2Error(
                f"The DICOM file {name} is JPEG with 12 bits per sample, which no decoder that is installed here reads. Install "
                f"pylibjpeg and pylibjpeg-libjpeg, or export the file uncompressed."
            )


def _stream(dataset: "Dataset") -> bytes:
    """The compressed first frame; nothing for a file that is not compressed."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return b""
    from pydicom.encaps import get_frame

    return get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1))


def _stored(dataset: "Dataset", name: str, findings: Findings) -> Values:
    """[H, W] or [H, W, 3] stored values of the first frame, nothing converted but the bits that pixels do not have."""
    from pydicom.pixels import pixel_array

    options: dict[str, Any] = {"index": 0, "raw": True}
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if not native:
        return first_frame(dataset, name, raw=True)
    if str(dataset.PhotometricInterpretation) == "YBR_PARTIAL_422":
        options["photometric_interpretation"] = "YBR_FULL_422"  # of the same layout, which is what pydicom asks for
    bits, allocated = int(dataset.get("BitsStored") or 0), int(dataset.get("BitsAllocated") or 0)
    high = int(dataset.get("HighBit") if dataset.get("HighBit") is not None else bits - 1)
    if "PixelData" not in dataset or high == bits - 1 or not 0 < bits < allocated:
        return pixel_array(dataset, **options)
    whole = pixel_array(dataset, bits_stored=allocated, **options)
    lowest, signed = high - bits + 1, whole.dtype.kind == "i"
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    fits_below = least <= whole.min() and whole.max() <= most
    if high >= allocated or lowest < 0 or (fits_below and (whole & ((1 << lowest) - 1)).any()):
        findings.doubt(ODD_HIGH_BIT)
        return pixel_array(dataset, **options)
    left = allocated - 1 - high
    return (whole << left) >> (allocated - bits)


def _square(image: Image.Image, dataset: "Dataset", name: str, max_pixels: int, findings: Findings) -> Image.Image:
    """The image stretched along one side, if its pixels are not square (PS3.3 C.7.6.3.1.7, 10.7.1.3)."""
    ratio = 1.0
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        value = home_of(dataset, "PixelMeasuresSequence", keyword).get(keyword)
        sides = [float(side) for side in value] if value is not None and getattr(value, "__len__", None) else []
        if len(sides) == 2 and min(sides) > 0:
            ratio = sides[0] / sides[1]  # vertical to horizontal
            break
    if abs(ratio - 1) < 0.01:
        return image
    if not 1 / _MOST_STRETCH <= ratio <= _MOST_STRETCH:
        raise M2I2Error(f"The DICOM file {name} cannot be shown: its pixels are {ratio:.3g} times as high as wide.")
    size = (image.width, round(image.height * ratio)) if ratio > 1 else (round(image.width / ratio), image.height)
    if size[0] * size[1] > max_pixels:
        raise M2I2Error(f"The DICOM file {name} has {size[0]} x {size[1]} pixels once they are square, more than {max_pixels}.")
    findings.remarks.append(NOT_SQUARE)
    return image.resize(size, Image.Resampling.BICUBIC)
