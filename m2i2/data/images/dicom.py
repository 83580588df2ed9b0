"""DICOM files to the pixels a reader of radiographs would see: rescale, window, inversion; no word of the header.

Nothing but pixels leaves this module: names, dates and identifiers of the header are neither copied nor printed. What is
burned into the pixels cannot be removed here; files that admit to it, or that leave it open, give a warning.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2i2.data.images.decoding import MAX_PIXELS
from m2i2.data.images.elements import read_dataset
from m2i2.data.images.frames import first_frame
from m2i2.errors import M2I2Error

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CR", "CT", "DX", "IO", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "RG", "SC", "US", "XA", "XC", "GM", "SM", "ES")
"""Values of (0008,0060) that a picture may have; others are not repeated, since a header may hold anything."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Radiograph:
    """What a DICOM file shows, and what its user must know of it."""

    image: Image.Image
    """8-bit, RGB."""
    modality: str
    """DICOM's code (CR, CT, MR ...), or empty."""
    remarks: tuple[str, ...]
    """Warnings, a sentence each."""


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are a DICOM file: the mark ``DICM`` behind its preamble."""
    return encoded[128:132] == b"DICM"


def decode_dicom(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Radiograph:
    """The first frame of a DICOM file as an 8-bit RGB image.

    Greys go through rescale slope and intercept (or the modality table), then the first window or VOI table, else their
    full range; MONOCHROME1 is inverted. Compressed files need python-gdcm (JPEG, JPEG-LS, JPEG 2000; RLE needs nothing).
    M2I2Error names ``name`` where there is no picture, more than ``max_pixels``, or something that cannot be decoded.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as e:
        raise M2I2Error(f"Reading the DICOM file {name} needs pydicom: pip install 'm2i2[dicom]'.") from e
    if _DEFLATED in encoded:
        raise M2I2Error(f"The DICOM file {name} is deflated, so that it may unpack to any size; store it uncompressed first.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            dataset = read_dataset(encoded, name)
            remarks = _check(dataset, name, max_pixels)
            image = _picture(dataset, remarks, name)
            modality = str(dataset.get("Modality", ""))
    except M2I2Error:
        raise
    except Exception as e:  # pydicom and its decoders raise almost anything; their words may quote the header
        raise M2I2Error(
            f"The DICOM file {name} cannot be decoded ({type(e).__name__}): it is damaged, or compressed in a way that needs a "
            f"decoder which is not installed (pip install 'm2i2[dicom]')."
        ) from e
    return Radiograph(image, modality if modality in MODALITIES else "", tuple(remarks))


def _check(dataset: "Dataset", name: str, max_pixels: int) -> list[str]:
    """Warnings; M2I2Error for a file without a picture or with too large a one, before anything is decoded."""
    if "PixelData" not in dataset:
        raise M2I2Error(f"The DICOM file {name} holds no image; name one of radiography, CT, MR or ultrasound.")
    width, height = int(dataset.Columns), int(dataset.Rows)
    if width * height > max_pixels:
        raise M2I2Error(f"The DICOM file {name} has {width} x {height} pixels, more than the bound of {max_pixels}.")
    remarks = []
    burned = str(dataset.get("BurnedInAnnotation", "")).upper()
    if burned == "YES":
        remarks.append("The file says that text is burned into its pixels; that may be a patient's name.")
    elif burned != "NO":
        remarks.append("The file does not say whether text, such as a patient's name, is burned into its pixels; look at it.")
    if str(dataset.get("PatientIdentityRemoved", "")).upper() != "YES":
        remarks.append("Its header may hold identifiers; none of them is copied, but the file itself still has them.")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        remarks.append(f"It has {frames} frames; the first one is used.")
    return remarks


def _picture(dataset: "Dataset", remarks: list[str], name: str) -> Image.Image:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    stored = first_frame(dataset, name)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        return Image.fromarray((stored >> 8 * (stored.itemsize - 1)).astype(np.uint8))
    if stored.ndim == 3:  # RGB; YBR is converted already
        return Image.fromarray((stored >> max(0, int(dataset.BitsStored) - 8)).astype(np.uint8))
    values = np.asarray(apply_modality_lut(stored, dataset))
    shown, low, high = _windowed(values, stored != dataset.get("PixelPaddingValue"), dataset, remarks)
    grey = ((shown - low) * (255.0 / max(high - low, 1e-9))).clip(0, 255)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _windowed(
    values: NDArray[Any], inside: NDArray[Any], dataset: "Dataset", remarks: list[str]
) -> tuple[NDArray[Any], float, float]:
    """Greys through the first VOI table or window, and what is black and white there.

    Without one, the darkest and the brightest grey are, padding (where not ``inside``) left aside.
    """
    from pydicom.pixels import apply_voi, apply_windowing

    try:
        if dataset.get("VOILUTSequence"):
            bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
            return apply_voi(values, dataset), 0.0, float(2**bits - 1)
        if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
            ends = np.array([-1e12, 1e12])  # beyond any window: they become its black and its white
            shown = apply_windowing(np.concatenate([values.astype(np.float64).ravel(), ends]), dataset)
            return shown[:-2].reshape(values.shape), float(shown[-2]), float(shown[-1])
    except (ValueError, TypeError, IndexError, AttributeError):
        remarks.append("Its window is not a valid one; the whole range of its greys is shown.")
    seen = values[inside] if inside.any() else values
    return values.astype(np.float64), float(seen.min()), float(seen.max())
