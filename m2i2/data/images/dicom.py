"""DICOM files to the pixels a reader of radiographs would see: rescale, window, inversion; no word of the header.

Nothing but pixels leaves this module: names, dates and identifiers of the header are neither copied nor printed. What is
burned into the pixels cannot be removed here; files that admit to it, or that leave it open, give a warning.
"""

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from m2i2.data.images.decoding import MAX_PIXELS
from m2i2.data.images.dicom_pixels import to_picture
from m2i2.data.images.elements import PIXELS, read_dataset
from m2i2.data.images.levels import Findings
from m2i2.errors import M2I2Error

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CR", "CT", "DX", "IO", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "RG", "SC", "US", "XA", "XC", "GM", "SM", "ES")
"""Values of (0008,0060) that a picture may have; others are not repeated, since a header may hold anything."""
_BARE = re.compile(
    rb"[\x02\x08]\0.\0(?:A[ES]|AT|CS|D[AST]|IS|L[OT]|OB|OW|PN|S[HLQST]|TM|U[CILNRST]).|\x08\0[\0-\x2f]\0..\0\0|"
    rb"\0[\x02\x08]\0.(?:CS|UL|UI|SH|DA|TM)",
    re.DOTALL,
)
"""How a file begins that lacks preamble and mark: with an element of group 2 or 8, explicit, implicit or big-endian."""
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
    doubts: tuple[str, ...] = ()
    """Those of them that may mean that the picture is wrong."""


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are a DICOM file: the mark ``DICM`` behind its preamble, or, without one, a first element of DICOM's."""
    return encoded[128:132] == b"DICM" or encoded.startswith(b"DICM") or _BARE.match(encoded) is not None


def decode_dicom(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Radiograph:
    """The first frame of a DICOM file as an 8-bit RGB image.

    Greys go through rescale slope and intercept (or the modality table), then the first window or VOI table, else they are
    stretched over their range (`levels.value_range`); MONOCHROME1 is inverted. Compressed files need python-gdcm (JPEG,
    JPEG-LS, JPEG 2000; RLE needs nothing). M2I2Error names ``name`` where there is no picture, more than ``max_pixels``, or
    something that cannot be decoded.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as e:
        raise M2I2Error(f"Reading the DICOM file {name} needs pydicom: pip install '.[dicom]'.") from e
    if _DEFLATED in encoded:
        raise M2I2Error(f"The DICOM file {name} is deflated, so that it may unpack to any size; store it uncompressed first.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            dataset = read_dataset(_with_preamble(encoded), name, force=_BARE.match(encoded) is not None)
            _name_syntax(dataset)
            found = Findings(_check(dataset, name, max_pixels))
            image = to_picture(dataset, name, max_pixels, found)
            modality = str(dataset.get("Modality", ""))
            modality = modality if modality in MODALITIES else ""
    except M2I2Error:
        raise
    except Exception as e:  # pydicom and its decoders raise almost anything; their words may quote the header
        raise M2I2Error(
            f"The DICOM file {name} cannot be decoded ({type(e).__name__}): it is damaged, or compressed in a way that needs a "
            f"decoder which is not installed (pip install '.[dicom]')."
        ) from e
    return Radiograph(image, modality, tuple(found.remarks), tuple(found.doubts))


def _with_preamble(encoded: bytes) -> bytes:
    """A file whose mark comes first, as other files have it."""
    return bytes(128) + encoded if encoded.startswith(b"DICM") else encoded


def _name_syntax(dataset: "Dataset") -> None:
    """Name the transfer syntax of a file that does not: the uncompressed one of its bytes."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = plain


def _check(dataset: "Dataset", name: str, max_pixels: int) -> list[str]:
    """Warnings; M2I2Error for a file without a picture or with too large a one, before anything is decoded."""
    if not any(element in dataset for element in PIXELS):
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
