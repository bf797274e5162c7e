"""DICOM files around pixels, written by pydicom."""

from __future__ import annotations

import io
import warnings

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

NAME, NUMBER = "Musterfrau^Erika", "KH-0815-4711"


def header(pixels, **elements):
    """A data set around pixels: (H, W), (H, W, 3), or (N, H, W) with NumberOfFrames=N."""
    found = Dataset()
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    found.SOPClassUID, found.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    found.Modality, found.PatientID, found.PatientName = "OT", NUMBER, NAME
    found.Rows, found.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    if colour:
        found.PlanarConfiguration = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are wrong on purpose
        for keyword, value in elements.items():
            setattr(found, keyword, value)
    return found


def written(found, syntax=ExplicitVRLittleEndian):
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = UID(syntax)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are wrong on purpose
        found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def encoded(pixels, syntax=ExplicitVRLittleEndian, **elements):
    """A DICOM file."""
    found = header(pixels, **elements)
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    found.PixelData = (big_endian if syntax == ExplicitVRBigEndian else pixels).tobytes()
    found["PixelData"].VR = "OB" if found.BitsAllocated <= 8 else "OW"
    return written(found, syntax)


def wrapped(frames, syntax, pixels, **elements):
    """A DICOM file around frames that are compressed already."""
    found = header(pixels, **elements)
    found.PixelData = encapsulate(frames)
    found["PixelData"].is_undefined_length = True
    found["PixelData"].VR = "OB"
    return written(found, syntax)
