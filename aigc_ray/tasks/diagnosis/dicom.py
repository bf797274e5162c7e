"""DICOM files as images: the frames they hold, how these look, and what is kept of their headers.

Grey levels take the way of PS3.4 N.2: stored value, modality transform, value-of-interest
transform, and MONOCHROME1 is turned round, so that air is black in a chest film of any maker. Where
the header names no window a frame is spread from its .5th to its 99.5th percentile; up to 8 plain
bits are taken as they are, since ultrasound and screenshots are made to be shown so. Overlays are
not drawn.

Of a header only `KEPT` and `DERIVED` are told to anybody; who the patient is goes to the splitter
alone. Sentences of an `Unreadable` are our own, never pydicom's, which may quote a header.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEGExtended12Bit, RLELossless

from aigc_ray.tasks.diagnosis import dicom_file, images
from aigc_ray.tasks.diagnosis.dicom_decoder import DECODER
from aigc_ray.tasks.diagnosis.dicom_file import BROKEN, DAMAGED, coded, guarded, text_of
from aigc_ray.tasks.diagnosis.images import Unreadable

ENDINGS = (".dcm", ".dicom")
FRAMES = 4096  # in a file
RLE_BYTES = 16 << 20  # of a frame, which pydicom may make 64 times as many of
SPREAD = (0.5, 99.5)  # further in than for PNG files: raw values have metal, markers, dead pixels
PLUGINS = ("pydicom", "pillow", "pylibjpeg", "gdcm")
APART = PLUGINS[2:]  # in a process of their own
DEPTHS = (1, 8, 16, 32, 64)
NO_PREAMBLE = "the file is called DICOM and is none: DICM does not follow 128 bytes of preamble"
EXTRA = "pip install 'aigc_ray[dicom]'"

CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # value representation CS, PS3.5 6.2
NAME = re.compile(r"[\w .,:;&()/+-]{1,64}", re.ASCII)  # of LO, what makers and devices need
KEPT = {  # what is kept of a header as it is, if it has this form
    "Modality": (0x00080060, CODE),
    "Manufacturer": (0x00080070, NAME),
    "ManufacturerModelName": (0x00081090, NAME),
    "BodyPartExamined": (0x00180015, CODE),
    "ViewPosition": (0x00185101, CODE),
    "PatientSex": (0x00100040, re.compile("[MFO]")),
    "Laterality": (0x00200060, re.compile("[LRUB]")),
    "ImageLaterality": (0x00200062, re.compile("[LRUB]")),
}
DERIVED = {  # what is made of a header, and of which elements
    "rows": (0x00280010,),
    "columns": (0x00280011,),
    "frame": (0x00280008,),
    "age_band": (0x00101010,),  # decades; all from 90 on are one, as HIPAA's safe harbour asks
    "pixel_spacing_mm": (0x00280030, 0x00181164),  # between rows, between columns
    "pixel_spacing_from": (0x00280030, 0x00181164),  # the detector's is larger than the patient's
    "burned_in": (0x00280301,),  # yes, no or unknown
}
IDENTIFYING = ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber")
FUNCTIONAL = {  # where enhanced multi-frame files have these for each frame, PS3.3 C.7.6.16
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
}
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"


def scan(data: bytes, name: str) -> Scan | None:
    """The DICOM file that these bytes are, or None where they are none.

    Args:
        name: the file's, for one whose ending promises DICOM that it does not hold.

    Raises:
        Unreadable: it is a DICOM file, or is called one, whose images cannot be had.
    """
    if dicom_file.is_dicom(data):
        return Scan(data)
    if data and name.lower().endswith(ENDINGS):
        raise Unreadable(NO_PREAMBLE)
    return None


class Scan:
    """A DICOM file whose header was found to be sound; its frames are decoded one by one.

    Args:
        data: the file's bytes, from anybody.

    Raises:
        Unreadable: with one sentence that holds nothing of the header but the transfer syntax, the
            modality, the photometric interpretation and the size.

    Attributes:
        frames: how many there are; they are counted from 1.
        patient: the PatientID, or where there is none the StudyInstanceUID; to be written nowhere.
        burned_in: whether text is burnt into the pixels, by the header: "yes", "no" or "unknown".
    """

    @guarded(DAMAGED)
    def __init__(self, data: bytes) -> None:
        if len(data) > images.FILE_BYTES:
            raise Unreadable(images.TOO_LARGE)
        self._file = dicom_file.File(data)
        self._header, self._syntax = self._file.header, self._file.syntax
        self.patient = self._text("PatientID") or self._text("StudyInstanceUID") or None
        declared = self._text("BurnedInAnnotation").upper()
        self.burned_in = {"YES": "yes", "NO": "no"}.get(declared, "unknown")
        if self._file.pixels_at is None:
            raise Unreadable(f"the DICOM file holds no pixels{self._code('Modality')}")
        self._photometric = self._text("PhotometricInterpretation")
        self._rows, self._columns = self._whole("Rows"), self._whole("Columns")
        self.frames = self._whole("NumberOfFrames", 1) or 1
        self._check()
        # Compressed frames one by one: where one is damaged the others are not.
        self._encoded = self._file.read_pixels(self.frames)

    # --- frames -----------------------------------------------------------------------------

    @guarded(BROKEN)
    def image(self, number: int) -> Image.Image:
        """A frame, of mode L or RGB, in 8 bits; one whose three channels are equal is L.

        Raises:
            Unreadable: it is damaged, or of no form that is understood.
        """
        if not 1 <= number <= self.frames:
            raise Unreadable(f"the file's frames are 1 to {self.frames}; got {number}")
        stored = self._stored(number)
        if self._photometric in GREY:
            return Image.fromarray(self._shown(stored, number))
        if self._photometric == PALETTE:
            stored = apply_color_lut(stored, self._header)
            depth = 8 * stored.dtype.itemsize
        else:
            depth = min(self._whole("BitsStored", 8), 8 * stored.dtype.itemsize)
        if stored.shape[2:] != (3,):
            raise Unreadable(BROKEN)
        return images.grey(Image.fromarray((stored >> max(0, depth - 8)).astype(np.uint8)))

    @guarded(DAMAGED)
    def kept(self, number: int) -> dict[str, Any]:
        """What may be stored of the header beside a frame: `KEPT` and `DERIVED`, JSON-safe.

        Text that repeats a part of the patient's name or a number is left out.
        """
        names = " ".join(self._text(keyword) for keyword in IDENTIFYING).lower()
        private = [part for part in re.split(r"[\W_]+", names) if len(part) > 2]
        found: dict[str, Any] = {}
        for keyword, (_, form) in KEPT.items():
            text = self._text(keyword)
            if form.fullmatch(text) and not any(part in text.lower() for part in private):
                found[keyword] = text
        found |= {"rows": self._rows, "columns": self._columns}
        if self.frames > 1:
            found["frame"] = number
        if band := age_band(self._text("PatientAge")):
            found["age_band"] = band
        return found | self._spacing(number) | {"burned_in": self.burned_in}

    # --- the header -------------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what is too large or of no form that is known, by the header alone."""
        if min(self._rows, self._columns) < 1:
            raise Unreadable("the DICOM header tells of an image without pixels")
        if self._rows * self._columns > images.PIXELS:
            raise Unreadable(f"the image has more than {images.PIXELS // 10**6} million pixels")
        if not 1 <= self.frames <= FRAMES:
            raise Unreadable(f"a DICOM file has 1 to {FRAMES} frames; got {self.frames}")
        if self._photometric not in (*GREY, *COLOUR, PALETTE):
            what = self._code("PhotometricInterpretation")
            raise Unreadable(f"the image is neither grey nor RGB, YBR or of a palette{what}")
        bits, samples = self._whole("BitsAllocated"), self._whole("SamplesPerPixel", 1)
        if bits not in DEPTHS or samples != (3 if self._photometric in COLOUR else 1):
            raise Unreadable(f"no {self._photometric} image has {samples} samples of {bits} bits")
        if "SegmentedRedPaletteColorLookupTableData" in self._header:
            # A few bytes of it can ask for gigabytes.
            raise Unreadable("the image has a segmented palette, which is not read")
        try:
            decoder = get_decoder(self._syntax)
        except NotImplementedError:
            raise Unreadable(f"the transfer syntax {self._syntax.name} is not read") from None
        deep = self._syntax == JPEGExtended12Bit and self._whole("BitsStored") > 8
        if deep and not {*decoder.available_plugins} - {"gdcm", "pillow"}:
            raise Unreadable(f"the transfer syntax {self._syntax.name} is not read with 12 bits")
        if not decoder.is_available:
            raise Unreadable(
                f"no decoder of the transfer syntax {self._syntax.name} is installed: {EXTRA}"
            )

    def _text(self, keyword: str) -> str:
        return text_of(self._header, keyword)

    def _code(self, keyword: str) -> str:
        """A coded value for a sentence, if it has a code's form; else a name might stand there."""
        code = self._text(keyword)
        return f" ({keyword} is {code})" if CODE.fullmatch(code) else ""

    def _whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number, which text may be that is none."""
        try:
            value = self._header.get(keyword, default)
            return int(default if value is None and default is not None else value)
        except (TypeError, ValueError, OverflowError):
            raise Unreadable(f"{keyword} in the DICOM header is missing or no number") from None

    def _fact(self, number: int, keyword: str) -> Any:
        """An element's value for one frame: its own, or what all share."""
        for sequence, place in (
            ("PerFrameFunctionalGroupsSequence", number - 1),
            ("SharedFunctionalGroupsSequence", 0),
        ):
            groups = self._header.get(sequence) or []
            group = groups[place].get(FUNCTIONAL[keyword]) if len(groups) > place else None
            if group and keyword in group[0]:
                return group[0].get(keyword)
        return self._header.get(keyword)

    def _spacing(self, number: int) -> dict[str, Any]:
        """Millimetres between rows and between columns; a detector's are not the patient's."""
        imager = self._header.get("ImagerPixelSpacing")
        for keyword, value in (
            ("PixelSpacing", self._fact(number, "PixelSpacing")),
            ("ImagerPixelSpacing", imager),
        ):
            try:
                spacing = [float(part) for part in value]
            except (TypeError, ValueError):
                continue
            if len(spacing) == 2 and all(0 < part < math.inf for part in spacing):
                return {"pixel_spacing_mm": spacing, "pixel_spacing_from": keyword}
        return {}

    # --- pixels -----------------------------------------------------------------------------

    def _stored(self, number: int) -> np.ndarray:
        """(H, W) or, in colour, (H, W, 3) RGB, as the file has them."""
        if not self._syntax.is_encapsulated:
            return np.asarray(pixel_array(self._header, index=number - 1))
        if number > len(self._encoded):
            raise Unreadable(f"the pixel data break off after frame {len(self._encoded)}")
        frame = self._encoded[number - 1]
        # A decoder would believe the frame, and take what memory it asks for.
        if self._syntax == RLELossless and len(frame) > RLE_BYTES:
            raise Unreadable(f"an RLE frame has at most {RLE_BYTES >> 20} MB")
        if self._syntax != RLELossless:
            head, samples = coded(frame), self._whole("SamplesPerPixel", 1)
            depth = self._whole("BitsAllocated")
            if head is None or head[:3] != (self._rows, self._columns, samples):
                raise Unreadable("a compressed frame has not the size that the header says")
            if not 2 <= head.bits <= depth:
                raise Unreadable("a compressed frame has more bits than the header says")
        self._header.PixelData = encapsulate([frame])
        return self._decoded(frame)

    def _decoded(self, frame: bytes) -> np.ndarray:
        """A compressed frame by the first decoder that can."""
        here = get_decoder(self._syntax).available_plugins
        for plugin in (name for name in PLUGINS if name in here):
            with contextlib.suppress(Exception):
                if plugin in APART:
                    return DECODER.decode(self._header, self._syntax, plugin, frame)
                return np.asarray(pixel_array(self._header, index=0, decoding_plugin=plugin))
        raise Unreadable(BROKEN)

    def _shown(self, stored: np.ndarray, number: int) -> np.ndarray:
        """Stored grey values as they are to be seen: (H, W) uint8, black to white."""
        if stored.ndim != 2:
            raise Unreadable(BROKEN)
        padding = self._padding(stored)
        levels = self._transformed(stored, number)
        window = self._window(number)
        plain = stored.dtype == np.uint8 and levels is stored
        if "VOILUTSequence" in self._header:
            levels = apply_voi(np.asarray(levels).astype(np.int32), self._header)
            depth = int(self._header.VOILUTSequence[0].LUTDescriptor[2])
            grey = _eight_bits(levels * (255.0 / (2**depth - 1)))
        elif window is not None:
            if stored.dtype.kind == "f" and window.function == "LINEAR":
                window = window._replace(function="LINEAR_EXACT")
            grey = _eight_bits(window.apply(levels.astype(np.float32)))
        elif plain:
            depth = min(8, self._whole("BitsStored", 8))
            grey = _eight_bits(stored * (255.0 / (2**depth - 1)))
        else:
            grey = images.spread(levels.astype(np.float32), ~padding, SPREAD)
        if self._photometric == "MONOCHROME1":
            grey = 255 - grey
        grey[padding] = 0
        return grey

    def _transformed(self, stored: np.ndarray, number: int) -> np.ndarray:
        """Modality transform: to Hounsfield units and the like, PS3.3 C.11.1; perhaps none."""
        if "ModalityLUTSequence" in self._header:
            return np.asarray(apply_modality_lut(stored, self._header))
        slope, intercept = (self._fact(number, f"Rescale{part}") for part in ("Slope", "Intercept"))
        slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
        if not math.isfinite(slope) or not math.isfinite(intercept) or not slope:
            raise Unreadable("RescaleSlope and RescaleIntercept in the DICOM header are no numbers")
        if (slope, intercept) == (1, 0):
            return stored
        return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)

    def _window(self, number: int) -> Window | None:
        """The first window that the header names."""
        try:
            center, width = (
                float(np.atleast_1d(self._fact(number, f"Window{part}"))[0])
                for part in ("Center", "Width")
            )
        except (TypeError, ValueError, IndexError):
            return None
        function = str(self._fact(number, "VOILUTFunction") or "LINEAR").strip().upper()
        least = 1 if function == "LINEAR" else 0
        usable = math.isfinite(center) and math.isfinite(width) and width >= least and width
        return Window(center, width, function) if usable else None

    def _padding(self, stored: np.ndarray) -> np.ndarray:
        """(H, W) bool: pixels outside of the picture, which have no grey level, C.7.5.1.1.2."""
        first = self._header.get("PixelPaddingValue")
        if not isinstance(first, int):
            return np.zeros(stored.shape, bool)
        last = self._header.get("PixelPaddingRangeLimit")
        low, high = sorted((first, last if isinstance(last, int) else first))
        return (stored >= low) & (stored <= high)


class Window(NamedTuple):
    """Which values are seen: PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str  # LINEAR, LINEAR_EXACT or SIGMOID; LINEAR is meant for whole numbers

    def apply(self, levels: np.ndarray) -> np.ndarray:
        """Black is 0, white 255."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            power = np.clip(-4 * (levels - center) / width, -80, 80)  # e^88 is infinite in float32
            return 255 / (1 + np.exp(power))
        if self.function == "LINEAR_EXACT":
            return ((levels - center) / width + 0.5) * 255
        if width == 1:  # the formula below would divide by nothing
            return np.where(levels > center - 0.5, 255.0, 0.0)
        return ((levels - (center - 0.5)) / (width - 1) + 0.5) * 255


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    if not np.isfinite(levels).all():
        raise Unreadable("the image holds NaN or infinite values")
    grey: np.ndarray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return grey


def age_band(age: str) -> str | None:
    """A PatientAge such as 063Y (or 009M, 002W, 010D) as the decade 60-69; 90+ for all above."""
    match = re.fullmatch(r"(\d{3})([DWMY])", age)
    if match is None:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]]
    decade = int(years // 10 * 10)
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"
