"""DICOM: greys as a viewer shows them, compressed or not, warnings where they are due, and nothing of the header."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from m2i2.data.images.dicom import decode_dicom, is_dicom
from m2i2.errors import M2I2Error

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def dicom(pixels: np.ndarray, **header: Any) -> bytes:
    """A file of 12 bits in 16, as a digital radiography unit writes it, with a patient in its header."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = header.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "DOE^JANE", "SECRET-4711", "19700101"
    ds.Modality, ds.PhotometricInterpretation = "DX", "MONOCHROME2"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    for key, value in header.items():
        setattr(ds, key, value)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


RAMP = np.arange(0, 4096, 16).reshape(16, 16)


def greys(encoded: bytes) -> np.ndarray:
    image = np.asarray(decode_dicom(encoded, "x").image)
    assert image.dtype == np.uint8 and (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()
    return image[..., 0].astype(int)


def test_without_a_window_the_whole_range_is_shown() -> None:
    assert abs(greys(dicom(RAMP)) - RAMP / 4080 * 255).max() <= 0.5


def test_the_window_is_that_of_the_rescaled_greys() -> None:
    # stored 1024 .. 3071 are 0 .. 2047 after the intercept: centre 1024, width 2048
    found = greys(dicom(RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=1024, WindowWidth=2048))
    expected = ((RAMP - 1024) / 2047 * 255).clip(0, 255)
    assert abs(found - expected).max() <= 1
    # a window that the image does not fill is not stretched
    dark = greys(dicom(RAMP // 4, WindowCenter=2048, WindowWidth=4096))
    assert dark.max() == round(1020 / 4095 * 255)


def test_the_first_of_several_windows_counts() -> None:
    one = greys(dicom(RAMP, WindowCenter=1000, WindowWidth=400))
    several = greys(dicom(RAMP, WindowCenter=[1000, 3000], WindowWidth=[400, 100]))
    assert (one == several).all()


def test_monochrome1_is_inverted() -> None:
    assert (greys(dicom(RAMP, PhotometricInterpretation="MONOCHROME1")) == 255 - greys(dicom(RAMP))).all()


def test_padding_does_not_flatten_the_greys() -> None:
    padded = np.where(RAMP < 160, 4095, 1000 + RAMP // 16)
    found = greys(dicom(padded, PixelPaddingValue=4095))
    assert found[RAMP >= 160].min() == 0 and found[-1, -1] == 255


def test_an_invalid_window_is_said_and_passed_over() -> None:
    radiograph = decode_dicom(dicom(RAMP, WindowCenter=100, WindowWidth=0), "x")
    assert any("window is not a valid one" in remark for remark in radiograph.remarks)
    assert np.asarray(radiograph.image).max() == 255


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian"])
def test_compressed_files_show_what_the_plain_one_shows(name: str) -> None:
    plain = greys((SAMPLES / "MR_small.dcm").read_bytes())
    assert (greys((SAMPLES / f"{name}.dcm").read_bytes()) == plain).all()


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm", "SC_rgb_rle_16bit", "SC_rgb_jls_lossy_line", "examples_palette"])
def test_colours(name: str) -> None:
    image = np.asarray(decode_dicom((SAMPLES / f"{name}.dcm").read_bytes(), name).image)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert np.ptp(image, axis=2).max() > 150, "saturated colours"


def test_nothing_of_the_header_comes_through(capsys: pytest.CaptureFixture[str]) -> None:
    radiograph = decode_dicom(dicom(RAMP, Modality="JANE"), "x")
    out = io.BytesIO()
    radiograph.image.save(out, "PNG")
    everything = repr(radiograph) + repr(radiograph.image.info) + str(out.getvalue()) + "".join(capsys.readouterr())
    assert not any(word in everything for word in ("DOE", "JANE", "SECRET", "1970"))
    assert radiograph.modality == ""
    assert decode_dicom(dicom(RAMP), "x").modality == "DX"


@pytest.mark.parametrize(
    ("header", "remark"),
    [
        ({"BurnedInAnnotation": "YES"}, "says that text is burned into its pixels"),
        ({}, "does not say whether text"),
        ({"BurnedInAnnotation": "NO"}, "header may hold identifiers"),
        ({"NumberOfFrames": 2, "PixelData": RAMP.astype("<u2").tobytes() * 2}, "2 frames; the first one is used"),
    ],
)
def test_warnings(header: dict[str, Any], remark: str) -> None:
    assert any(remark in r for r in decode_dicom(dicom(RAMP, **header), "x").remarks)


def test_a_clean_file_gives_no_warning() -> None:
    clean = dicom(RAMP, BurnedInAnnotation="NO", PatientIdentityRemoved="YES")
    assert decode_dicom(clean, "x").remarks == ()


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (dicom(RAMP)[:-9], "x cannot be decoded"),
        (dicom(RAMP)[:300], "x (cannot be decoded|holds no image)"),
        (dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian), "x is deflated"),
        ((SAMPLES / "rtplan.dcm").read_bytes(), "x holds no image"),
        (b"\x89PNG" + bytes(200), "x cannot be decoded"),
        (dicom(RAMP).replace(b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00BS"), "x cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_one_paragraph(encoded: bytes, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        decode_dicom(encoded, "x")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(M2I2Error, match="16 x 16 pixels, more than the bound of 255"):
        decode_dicom(dicom(RAMP), "x", max_pixels=255)


def test_dicom_is_told_by_its_mark() -> None:
    assert is_dicom(dicom(RAMP))
    assert not is_dicom(b"\x89PNG" + bytes(200)) and not is_dicom(b"")
