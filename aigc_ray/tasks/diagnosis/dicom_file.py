"""The bytes of a DICOM file: its header, and its pixels once the header has been looked at.

Not by pydicom's own `dcmread`, which inflates a deflated file to whatever size, and reads the
pixels before anybody could ask how many there are.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from aigc_ray.tasks.diagnosis import images
from aigc_ray.tasks.diagnosis.images import Unreadable

MAGIC, MAGIC_AT = b"DICM", 128  # after the preamble, PS3.10 7.1
META_AT = MAGIC_AT + len(MAGIC)
HEADER_BYTES = 8 << 20  # enhanced multi-frame files of a thousand frames have some 2 MB
INFLATED_BYTES = 4 * images.FILE_BYTES  # of a deflated file
DAMAGED = "the DICOM header is damaged or breaks off"
BROKEN = "the pixel data are damaged or break off"
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # of float, double and whole numbers
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG B.1.1.3; F7 is JPEG-LS's
START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000 A.4.1 and A.5.1

# It quotes values of headers, and no log may hold a patient's.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as PS3.10 asks."""
    return data[MAGIC_AT:META_AT] == MAGIC


@contextmanager
def guarded(reason: str) -> Iterator[None]:
    """Whatever pydicom and the decoders raise at a file becomes one sentence of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many sound files are not quite as the standard asks
            yield
    except Unreadable:
        raise
    except Exception:
        raise Unreadable(reason) from None


class File:
    """A DICOM file's elements.

    Attributes:
        syntax: the transfer syntax: how elements and pixels are written, PS3.5 10.
        header: the elements before the pixels, and after `read_pixels` the pixels too.
        pixels_at: where they begin after the meta information; None where there are none.
    """

    @guarded(DAMAGED)
    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data[: META_AT + HEADER_BYTES])
        file.seek(META_AT)
        # PS3.10 7.1: the meta information is explicit and little-endian whatever follows.
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        name = text_of(meta, "TransferSyntaxUID")
        if not re.fullmatch(r"[\d.]{1,64}", name):
            raise Unreadable("the DICOM header names no transfer syntax")
        self.syntax = UID(name)
        self._body = data[file.tell() :]
        if self.syntax == DeflatedExplicitVRLittleEndian:
            self._body = inflated(self._body)
        self.header, self.pixels_at = self._read_header()
        self.header.file_meta = FileMetaDataset()
        self.header.file_meta.TransferSyntaxUID = self.syntax

    def _read_header(self) -> tuple[Dataset, int | None]:
        file = io.BytesIO(self._body[:HEADER_BYTES])
        implicit = self.syntax == ImplicitVRLittleEndian
        little_endian = self.syntax != ExplicitVRBigEndian
        header = read_dataset(
            file, implicit, little_endian, stop_when=lambda tag, vr, length: tag in PIXELS
        )
        if not header:  # all is lost where it breaks off
            raise Unreadable(DAMAGED)
        if file.tell() < len(file.getbuffer()):
            return header, file.tell()
        if len(self._body) > HEADER_BYTES:
            raise Unreadable(f"the DICOM header has more than {HEADER_BYTES >> 20} MB")
        return header, None

    @guarded(BROKEN)
    def read_pixels(self, frames: int) -> list[bytes]:
        """The pixels into the header; where they are compressed, each frame of them besides.

        There may be fewer frames than the header promises, never none.
        """
        header, file = self.header, io.BytesIO(self._body)
        file.seek(self.pixels_at or 0)
        implicit, little_endian = header.original_encoding  # not always what the syntax says
        found = read_dataset(
            file,
            bool(implicit),
            bool(little_endian),
            stop_when=lambda tag, vr, length: tag not in PIXELS,
        )
        header.update(found)
        if self.syntax.is_encapsulated:
            every = generate_frames(header.PixelData, number_of_frames=frames)
            encoded = list(islice(every, frames))
            if not encoded:
                raise Unreadable(BROKEN)
            header.NumberOfFrames = 1
            return encoded
        if "PixelData" in header:
            here, wanted = len(header.PixelData), get_expected_length(header)
            if here < wanted:
                raise Unreadable(f"the pixel data break off after {here} of {wanted} bytes")
        return []


def inflated(body: bytes) -> bytes:
    """The elements of a deflated file, PS3.5 A.5, if they are not too many."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflater.decompress(body, INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise Unreadable(f"the file has more than {INFLATED_BYTES >> 20} MB when it is inflated")
    return found


def text_of(elements: Dataset, keyword: str) -> str:
    """An element's value as text; empty where there is none."""
    value = elements.get(keyword)
    return "" if value is None else str(value).strip()


class Coded(NamedTuple):
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int  # of a sample


def coded(frame: bytes) -> Coded | None:
    """The head of a JPEG, JPEG-LS or JPEG 2000 codestream, before anything decodes it.

    ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2, 15444-1 A.5.1. None where none is found.
    """
    start = frame.find(START_OF_CODESTREAM, 0, 4096)  # in some files boxes stand before it
    if start >= 0 and len(frame) >= start + 43:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        samples, bits = struct.unpack_from(">HB", frame, start + 40)
        return Coded(bottom - top, right - left, samples, (bits & 127) + 1)
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            return Coded(rows, columns, samples, bits)
        # Markers may be preceded by fill bytes; all others before the frame have a length.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4])
    return None
