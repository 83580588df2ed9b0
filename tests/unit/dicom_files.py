"""DICOM files for tests: compressed streams in a header that says what the test wants it to say."""

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from tests.unit.test_dicom import SAMPLES, dicom

__all__ = ["SAMPLES", "dicom", "frame", "stream"]


def stream(content: bytes, syntax: UID, rows: int, columns: int, **header: Any) -> bytes:
    """A file of 8 bits whose one frame is ``content``."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(np.zeros((2, 2)))))
    dataset.file_meta.TransferSyntaxUID = syntax
    values = {"Rows": rows, "Columns": columns, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, **header}
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def frame(name: str) -> bytes:
    """The compressed stream of one of pydicom's samples."""
    from pydicom.encaps import get_frame

    return get_frame(pydicom.dcmread(SAMPLES / f"{name}.dcm").PixelData, 0, number_of_frames=1)
