"""DICOM files, written here by pydicom, as images, as rows of a data set, and in requests."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.task import Reject
from aigc_ray.tasks.diagnosis import data, dicom, dicom_decoder, dicom_file, images
from aigc_ray.tasks.diagnosis.images import Unreadable
from aigc_ray.tasks.diagnosis.task import Diagnosis
from tests.dicom_files import NAME, NUMBER, encoded, header, wrapped, written

RANDOM = np.random.default_rng(0)
RAMP = np.arange(30 * 28, dtype=np.uint16).reshape(30, 28)


def shown(file, number=1):
    scan = dicom.scan(file, "x.dcm")
    assert scan is not None
    return np.asarray(scan.image(number))


def refused(file, name="x"):
    with pytest.raises(Unreadable) as caught:
        scan = dicom.scan(file, name)
        for number in range(1, scan.frames + 1):
            scan.image(number)
    said = str(caught.value)
    assert NUMBER not in said and "Muster" not in said
    return said


@pytest.fixture
def grey():
    return data.survey.__globals__["_schema"](30, 1, ["a", "b"], False)


# --- grey levels ----------------------------------------------------------------------------------


def test_rescale_and_window_by_hand():
    stored = np.array([[0, 1014, 1024, 1034, 1064, 4095]], np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40}
    file = encoded(stored, **elements, WindowWidth=81)
    # HU -1024, -10, 0, 10, 40, 3071; (hu - 39.5) / 80 + .5, times 255
    assert shown(file).tolist() == [[0, 0, 2, 33, 129, 255]]
    exact = encoded(stored, **elements, WindowWidth=80, VOILUTFunction="LINEAR_EXACT")
    assert shown(exact).tolist() == [[0, 0, 0, 32, 128, 255]]  # (hu - 40) / 80 + .5, times 255
    soft = encoded(stored, **elements, WindowWidth=80, VOILUTFunction="SIGMOID")
    # 255 / (1 + exp(-4 (hu - 40) / 80)): at 0 HU 255 / (1 + e²), at 10 255 / (1 + e^1.5)
    assert shown(soft).tolist() == [[0, 19, 30, 47, 128, 255]]


def test_the_first_of_several_windows_and_a_slope(recwarn):
    stored = np.array([[0, 5, 10]], np.int16)
    file = encoded(stored, RescaleSlope=2, WindowCenter=[10.5, 500], WindowWidth=[21, 1])
    assert shown(file).tolist() == [[0, 128, 255]]
    step = encoded(stored, WindowCenter=5, WindowWidth=1)
    assert shown(step).tolist() == [[0, 255, 255]]  # at 4.5
    assert not recwarn


@pytest.mark.parametrize("width", [0, -3, "nan"])
def test_a_window_that_is_none_is_not_used(width):
    file = encoded(RAMP, WindowCenter=400, WindowWidth=float(width))
    assert np.array_equal(shown(file), shown(encoded(RAMP)))


def test_without_a_window_the_levels_are_spread():
    outlier = RAMP.copy()
    outlier[0, 0] = 60000
    got = shown(encoded(outlier)).astype(int)
    assert got.min() == 0 and got.max() == 255 and abs(got[15, 0] - 128) <= 1


def test_signed_values_and_bits_that_are_not_stored():
    signed = (RAMP.astype(np.int16) - 420) * 2
    assert np.array_equal(shown(encoded(signed)), shown(encoded(RAMP)))
    overlay = RAMP | 0x8000  # in old files overlays lie in the high bits
    file = encoded(overlay, BitsStored=12, HighBit=11)
    assert np.array_equal(shown(file), shown(encoded(RAMP, BitsStored=12, HighBit=11)))


def test_eight_plain_bits_are_taken_as_they_are():
    stored = RANDOM.integers(50, 100, (30, 28), np.uint8)
    assert np.array_equal(shown(encoded(stored)), stored)
    six = np.array([[0, 21, 63]], np.uint8)
    assert shown(encoded(six, BitsStored=6, HighBit=5)).tolist() == [[0, 85, 255]]


def test_monochrome1_is_turned_round():
    plain, turned = (
        shown(encoded(RAMP, PhotometricInterpretation=f"MONOCHROME{n}")) for n in (2, 1)
    )
    assert np.array_equal(turned, 255 - plain) and turned[0, 0] == 255


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_sets_no_window(kind, syntax):
    stored = RAMP.astype(np.int16)
    stored[:10] = -2000
    elements = {"PhotometricInterpretation": kind}
    got = shown(encoded(stored, syntax, PixelPaddingValue=-2000, **elements))
    assert not got[:10].any()
    whole = shown(encoded(stored[10:], **elements))
    assert np.array_equal(got[10:], whole)


def test_tables_for_modality_and_window():
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.LUTData = struct.pack("<4H", 0, 3, 2, 1)
    table["LUTData"].VR = "OW"
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    elements = {"WindowCenter": 2, "WindowWidth": 4}  # (value - 1.5) / 3 + .5
    file = encoded(stored, ModalityLUTSequence=[table], **elements)
    assert shown(file).tolist() == [[0, 255, 170, 85]]
    voi = Dataset()
    voi.LUTDescriptor, voi.LUTData = [4, 0, 10], struct.pack("<4H", 1023, 0, 341, 682)
    voi["LUTData"].VR = "OW"
    assert shown(encoded(stored, VOILUTSequence=[voi])).tolist() == [[255, 0, 85, 170]]


def test_float_pixels_and_a_window_of_one():
    found = header(np.zeros((1, 3), np.float32), BitsAllocated=32)
    found.FloatPixelData = np.array([0, 0.25, 1], np.float32).tobytes()
    found.WindowCenter, found.WindowWidth = 0.5, 1
    assert shown(written(found)).tolist() == [[0, 64, 255]]
    found.FloatPixelData = np.array([0, np.nan, 1], np.float32).tobytes()
    assert "NaN" in refused(written(found))


def test_one_bit_masks():
    mask = RANDOM.integers(0, 2, (16, 16), np.uint8)
    found = header(mask, BitsAllocated=1, BitsStored=1, HighBit=0)
    found.PixelData = np.packbits(mask.reshape(-1), bitorder="little").tobytes()
    found["PixelData"].VR = "OB"
    assert np.array_equal(shown(written(found)), mask * 255)


# --- colour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [0, 1])
def test_rgb_by_pixel_and_by_plane(planes):
    colour = RANDOM.integers(0, 256, (30, 28, 3), np.uint8)
    stored = colour.transpose(2, 0, 1) if planes else colour
    found = header(colour, PlanarConfiguration=planes)
    found.PixelData = stored.tobytes()
    found["PixelData"].VR = "OB"
    assert np.array_equal(shown(written(found)), colour)
    same = np.repeat(colour[..., :1], 3, 2)  # three equal channels count as one
    assert np.array_equal(shown(encoded(same)), same[..., 0])


def test_ybr_is_turned_to_rgb():
    stored = np.empty((2, 2, 3), np.uint8)
    stored[:] = (76, 85, 255)  # pure red, ITU-T T.871
    got = shown(encoded(stored, PhotometricInterpretation="YBR_FULL")).astype(int)
    assert np.abs(got - (254, 0, 0)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette(bits):
    levels = np.array([0, 100, 255, 255]) * (257 if bits == 16 else 1)
    tables = {"Red": levels, "Green": levels[::-1], "Blue": levels[[1, 1, 1, 1]]}
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in tables.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = table.astype(f"<u{bits // 8}").tobytes()
    stored = np.array([[0, 1, 2]], np.uint8)
    file = encoded(stored, **elements)
    assert shown(file).tolist() == [[[0, 255, 100], [100, 255, 100], [255, 100, 100]]]


# --- transfer syntaxes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_every_form_of_uncompressed_files(syntax):
    file = encoded(RAMP, syntax, WindowCenter=400, WindowWidth=801)
    assert np.array_equal(
        shown(file), np.rint((np.minimum(RAMP, 800) - 399.5) / 800 * 255 + 127.5).clip(0, 255)
    )


def test_rle_of_several_frames():
    frames = RANDOM.integers(0, 5, (3, 30, 28), np.uint16) * 1000
    found = header(frames, NumberOfFrames=3)
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.PixelData = frames.tobytes()
    found.compress(RLELossless, encoding_plugin="pydicom")
    plain = encoded(frames, NumberOfFrames=3)
    for number in (3, 1, 2):
        assert np.array_equal(shown(written(found, RLELossless), number), shown(plain, number))


def jpeg(array, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def test_jpeg():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    grey = wrapped([jpeg(smooth, quality=95)], JPEGBaseline8Bit, smooth)
    assert np.abs(shown(grey).astype(int) - smooth).max() <= 3
    colour = np.dstack([smooth, smooth // 2, 255 - smooth])
    coded = jpeg(colour, quality=95, subsampling=0)
    file = wrapped([coded], JPEGBaseline8Bit, colour, PhotometricInterpretation="YBR_FULL")
    assert np.abs(shown(file).astype(int) - colour).max() <= 6


def test_jpeg_2000():
    twelve = (RAMP * 4).astype(np.uint16)
    coded = jpeg(twelve, "JPEG2000", no_jp2=True, irreversible=False)
    file = wrapped([coded], JPEG2000Lossless, twelve, WindowCenter=1000, WindowWidth=2000)
    plain = encoded(twelve, WindowCenter=1000, WindowWidth=2000)
    assert np.array_equal(shown(file), shown(plain))
    assert dicom_file.coded(coded) == (30, 28, 1, 16)


def test_a_damaged_frame_costs_no_other(grey):
    frames = RANDOM.integers(0, 256, (3, 30, 30), np.uint8)
    coded = [jpeg(frame, "JPEG2000", no_jp2=True) for frame in frames]
    coded[1] = coded[1][:60] + bytes(len(coded[1]) - 60)
    file = wrapped(coded, JPEG2000Lossless, frames, NumberOfFrames=3)
    assert np.array_equal(shown(file, 1), frames[0]) and np.array_equal(shown(file, 3), frames[2])
    with pytest.raises(Unreadable, match="damaged or break off"):
        shown(file, 2)
    short = wrapped(coded[:1], JPEG2000Lossless, frames, NumberOfFrames=3)
    with pytest.raises(Unreadable, match="break off after frame 1"):
        shown(short, 3)


def test_a_decoder_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    said = refused(wrapped([b"\xff\xd8\xff\xd9"], JPEGLSLossless, RAMP))
    assert "JPEG-LS Lossless" in said and "pip install 'aigc_ray[dicom]'" in said
    assert "High-Throughput JPEG 2000" in refused(wrapped([b"xx"], HTJ2KLossless, RAMP))


def test_a_decoder_that_dies_or_hangs_costs_one_frame(monkeypatch):
    """The process apart, which GDCM's frames have; here it decodes RLE, which needs no extra."""
    decoder = dicom_decoder.Decoder()
    monkeypatch.setattr(dicom, "APART", dicom.PLUGINS)
    monkeypatch.setattr(dicom, "DECODER", decoder)
    levels = RANDOM.integers(0, 256, (30, 28), np.uint8)
    found = header(levels)
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.PixelData = levels.tobytes()
    found.compress(RLELossless, encoding_plugin="pydicom")
    file = written(found, RLELossless)
    assert np.array_equal(shown(file), levels)
    first = decoder._child
    first.kill()
    first.wait()
    with pytest.raises(Unreadable, match="damaged or break off"):
        shown(file)
    assert np.array_equal(shown(file), levels)
    second = decoder._child
    assert second.pid != first.pid
    monkeypatch.setattr(dicom_decoder, "SECONDS", 0.2)
    second.send_signal(signal.SIGSTOP)
    with pytest.raises(Unreadable, match="damaged or break off"):
        shown(file)
    monkeypatch.setattr(dicom_decoder, "SECONDS", 60)
    assert np.array_equal(shown(file), levels)
    assert "damaged" in refused(wrapped([bytes(64)], RLELossless, levels))  # it refuses, and lives
    third = decoder._child
    assert np.array_equal(shown(file), levels) and decoder._child is third
    decoder._end()


# --- several frames -------------------------------------------------------------------------------


def test_each_frame_has_its_own_transform():
    """As in enhanced CT, where windows and slopes lie in functional groups."""
    frames = np.stack([RAMP, RAMP])
    found = header(frames, NumberOfFrames=2)
    shared, groups = Dataset(), []
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.25]
    for slope in (1, 2):
        group = Dataset()
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = slope
        group.PixelValueTransformationSequence[0].RescaleIntercept = 0
        group.FrameVOILUTSequence = [Dataset()]
        group.FrameVOILUTSequence[0].WindowCenter = 400.5 * slope
        group.FrameVOILUTSequence[0].WindowWidth = 801
        groups.append(group)
    found.SharedFunctionalGroupsSequence = [shared]
    found.PerFrameFunctionalGroupsSequence = groups
    found.PixelData = frames.tobytes()
    file = written(found)
    assert (shown(file, 1)[0, 0], shown(file, 2)[0, 0]) == (0, 0)
    assert (shown(file, 1)[14, 8], shown(file, 2)[14, 8]) == (128, 127)  # 400 of 400, 800 of 800.5
    assert shown(file, 1)[28, 16] == 255 and shown(file, 2)[21, 12] == 255  # 800 and 1200
    assert shown(file, 1)[7, 4] == 64 and shown(file, 2)[7, 4] == 0  # 200 and 400 of 401 to 1201
    kept = dicom.scan(file, "x").kept(2)
    assert kept["pixel_spacing_mm"] == [0.5, 0.25] and kept["frame"] == 2


# --- files that nobody can read -------------------------------------------------------------------


def without(keyword):
    found = header(RAMP)
    found.PixelData = RAMP.tobytes()
    found["PixelData"].VR = "OW"
    delattr(found, keyword)
    return written(found)


def deflated_bomb():
    file = encoded(RAMP, DeflatedExplicitVRLittleEndian)
    start = file.index(zlib_start(file))
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    element = struct.pack("<HH2sHI", 0x0009, 0x0010, b"OB", 0, 1 << 29)
    return file[:start] + deflater.compress(element + bytes(1 << 21)) + deflater.flush()


def zlib_start(file):
    """What follows the group of meta elements, whose length its first element holds."""
    (length,) = struct.unpack_from("<I", file, 140)
    return file[144 + length :]


def nested():
    """A sequence in a sequence, 2000 deep."""
    item = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    file = encoded(RAMP)
    (length,) = struct.unpack_from("<I", file, 140)
    return file[: 144 + length] + item * 2000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"a letter to the hospital", "DICM does not follow"),
        (lambda: encoded(RAMP)[132:], "DICM does not follow"),
        (lambda: encoded(RAMP)[:140], "header is damaged|no transfer syntax"),
        (lambda: encoded(RAMP)[:500], "damaged|no pixels"),
        (lambda: encoded(RAMP)[:-2], r"break off after \d+ of 1680 bytes"),
        (lambda: encoded(RAMP, Rows=100), r"break off after 1680 of 5600 bytes"),
        (lambda: encoded(RAMP, Rows=10_000, Columns=50_000), "more than 50 million pixels"),
        (lambda: encoded(RAMP, NumberOfFrames=100_000), "1 to 4096 frames; got 100000"),
        (lambda: encoded(RAMP, NumberOfFrames=-1), "1 to 4096 frames; got -1"),
        (lambda: encoded(RAMP, Rows=0), "without pixels"),
        (lambda: encoded(RAMP, BitsAllocated=12), "1 samples of 12 bits"),
        (lambda: encoded(RAMP, SamplesPerPixel=2), "2 samples of 16 bits"),
        (lambda: encoded(RAMP, PhotometricInterpretation="CMYK"), "is CMYK"),
        (lambda: encoded(RAMP, PhotometricInterpretation=NAME), "nor RGB, YBR or of a palette$"),
        (lambda: encoded(RAMP, Modality="SR", RescaleSlope=0), "RescaleSlope"),
        (lambda: without("Rows"), "Rows in the DICOM header is missing"),
        (lambda: without("PixelData"), r"holds no pixels \(Modality is OT\)"),
        (deflated_bomb, "damaged|no pixels|when it is inflated"),
        (nested, "damaged"),
        (lambda: wrapped([b"junk"], JPEG2000Lossless, RAMP), "not the size that the header says"),
        (lambda: wrapped([bytes(64)], RLELossless, RAMP), "damaged or break off"),
        (lambda: wrapped([bytes(2)], JPEGBaseline8Bit, RAMP), "damaged|not the size"),
        (lambda: wrapped([b"x"], "1.2.840.10008.1.2.4.102", RAMP), "MPEG-4 .* is not read"),
        (
            lambda: wrapped([b"x"], JPEGExtended12Bit, RAMP, BitsStored=12, HighBit=11),
            "JPEG Extended .* is not read with 12 bits",
        ),
    ],
)
def test_bad_files_say_what_is_wrong(make, said):
    assert re.search(said, refused(make(), "x.dcm"))


def test_a_frame_larger_than_the_header_says_is_not_decoded(monkeypatch):
    monkeypatch.setattr(dicom, "pixel_array", lambda *_, **__: pytest.fail("it was decoded"))
    large = np.zeros((300, 300), np.uint8)
    for syntax, coded in (
        (JPEGBaseline8Bit, jpeg(large)),
        (JPEG2000Lossless, jpeg(large, "JPEG2000", no_jp2=True)),
    ):
        assert dicom_file.coded(coded) == (300, 300, 1, 8)
        assert "not the size" in refused(wrapped([coded], syntax, np.zeros((30, 30), np.uint8)))


def test_limits_on_bytes(monkeypatch):
    monkeypatch.setattr(dicom_file, "HEADER_BYTES", 3000)
    assert "header has more than" in refused(encoded(RAMP, ImageComments="x" * 4000))
    monkeypatch.setattr(dicom_file, "INFLATED_BYTES", 1000)
    assert "when it is inflated" in refused(encoded(RAMP, DeflatedExplicitVRLittleEndian))
    monkeypatch.setattr(dicom, "RLE_BYTES", 10)
    assert "RLE frame" in refused(wrapped([bytes(64)], RLELossless, RAMP))
    monkeypatch.setattr(images, "FILE_BYTES", 1000)
    assert refused(encoded(RAMP)) == images.TOO_LARGE


def test_any_damage_is_told_in_a_sentence():
    """Bytes that are changed or cut off anywhere: an image or a reason, never another exception."""
    file = encoded(RAMP, WindowCenter=400, WindowWidth=800, PatientAge="063Y")
    random = np.random.default_rng(1)
    read = 0
    for _ in range(300):
        damaged = bytearray(file)
        for at in random.integers(132, len(file), 4):
            damaged[at] = random.integers(256)
        try:
            scan = dicom.Scan(bytes(damaged[: random.choice([len(file), random.integers(400)])]))
            for number in range(1, min(scan.frames, 3) + 1):
                scan.image(number), scan.kept(number)
            read += 1
        except Unreadable as fault:
            assert str(fault) and "\n" not in str(fault)
    assert read  # most damage is to pixels


# --- what is kept of a header ---------------------------------------------------------------------


def test_only_the_declared_list_is_kept():
    everything = {
        "Manufacturer": "SIEMENS", "ManufacturerModelName": "Fluorospot", "Modality": "DX",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "PatientSex": "F", "PatientAge": "063Y",
        "ImageLaterality": "L", "ImagerPixelSpacing": [0.14, 0.143], "BurnedInAnnotation": "NO",
        "PatientBirthDate": "19600101", "InstitutionName": "Charité", "StudyDate": "20200101",
        "AccessionNumber": "A77", "ReferringPhysicianName": "Dr^X", "ImageComments": NAME,
    }  # fmt: skip
    scan = dicom.Scan(encoded(RAMP, **everything))
    assert scan.patient == NUMBER
    assert scan.kept(1) == {
        "Modality": "DX", "Manufacturer": "SIEMENS", "ManufacturerModelName": "Fluorospot",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "PatientSex": "F",
        "ImageLaterality": "L", "rows": 30, "columns": 28, "age_band": "60-69",
        "pixel_spacing_mm": [0.14, 0.143], "pixel_spacing_from": "ImagerPixelSpacing",
        "burned_in": "no",
    }  # fmt: skip
    assert {*scan.kept(1), "frame", "Laterality"} == dicom.KEPT.keys() | dicom.DERIVED.keys()


def test_a_name_in_the_wrong_place_is_not_kept():
    places = {"BodyPartExamined": "ERIKA", "Manufacturer": "for Musterfrau", "PatientSex": "Erika"}
    kept = dicom.Scan(encoded(RAMP, **places, ViewPosition="von Hand", PixelSpacing=[0, 1])).kept(1)
    assert kept == {"Modality": "OT", "rows": 30, "columns": 28, "burned_in": "unknown"}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("063Y", "60-69"), ("089Y", "80-89"), ("090Y", "90+"), ("107Y", "90+"), ("009M", "0-9"),
        ("011M", "0-9"), ("119M", "0-9"), ("121M", "10-19"), ("010D", "0-9"), ("002W", "0-9"),
        ("63", None), ("", None),
    ],
)  # fmt: skip
def test_age_in_decades(age, band):
    assert dicom.age_band(age) == band


def test_patient_or_study():
    study = generate_uid()
    assert dicom.Scan(encoded(RAMP, PatientID=" ", StudyInstanceUID=study)).patient == study
    assert dicom.Scan(encoded(RAMP, PatientID="")).patient is None


# --- in a data set --------------------------------------------------------------------------------


def hospital(folder, patients=40):
    """A folder a class: a patient has a film of each class and a sequence of three frames."""
    for patient in range(patients):
        who = {"PatientID": f"{NUMBER}-{patient}", "BurnedInAnnotation": "YES" if patient else "NO"}
        for label in "ab":
            (folder / label).mkdir(parents=True, exist_ok=True)
            film = RANDOM.integers(0, 4096, (30, 30), np.uint16)
            (folder / label / f"{patient:03d}.dcm").write_bytes(encoded(film, **who))
        cine = RANDOM.integers(0, 256, (3, 30, 30), np.uint8)
        file = encoded(cine, NumberOfFrames=3, **who)
        (folder / "ab"[patient % 2] / f"cine{patient:03d}").write_bytes(file)  # no suffix
    return str(folder)


def rows_of(dest):
    return [
        row | {"split": split}
        for split in ("train", "val", "test")
        for part in sorted((dest / split).glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]


def test_a_hospital_becomes_a_data_set_without_its_patients(tmp_path):
    source, dest = hospital(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "a" / "torn.dcm").write_bytes(encoded(RAMP)[:-5])
    (tmp_path / "in" / "a" / "DICOMDIR").write_bytes(encoded(RAMP)[:-5])
    manifest = ingest(Diagnosis(size=32), source, str(dest), parallel=0)
    assert Diagnosis(size=32).survey(source)[0].schema["image"].shape == (1, 32, 32)
    rows = rows_of(dest)
    assert len(rows) == 40 * 5 and manifest["rejects"]["count"] == 1
    assert {f"a/cine000#{n}" for n in (1, 2, 3)} < {row["source"] for row in rows}
    groups = {}
    for row in rows:
        number = row["source"].split("/")[1].removeprefix("cine")[:3]
        groups.setdefault(number, set()).add((row["patient"], row["split"]))
    assert all(len(group) == 1 for group in groups.values())  # one name and one split a patient
    names = {name for group in groups.values() for name, _ in group}
    assert names == {f"dicom-{n:06d}" for n in range(1, 41)}
    assert manifest["patients"]["known"] == 40
    assert manifest["flags"] == {"text burnt in: yes": 39 * 5}
    extra = [json.loads(row["extra"])["dicom"] for row in rows]
    assert {one["burned_in"] for one in extra} == {"yes", "no"}
    whole = b"".join(file.read_bytes() for file in dest.rglob("*") if file.is_file())
    tables = [pq.read_table(file).to_pydict() for file in dest.rglob("*.parquet")]
    everything = whole + repr(tables).encode()  # Parquet compresses its texts
    assert b"dicom-000001" in everything and b"torn.dcm" in everything
    for secret in (NUMBER, "Muster", "Erika", "0815"):
        assert secret.encode() not in everything


def test_patients_of_the_table_are_kept_and_rule(tmp_path):
    for number in range(12):
        film = RANDOM.integers(0, 4096, (30, 30), np.uint16)
        (tmp_path / f"{number}.dcm").write_bytes(encoded(film, PatientID=f"P{number}"))
    split = ["train", "val", "test"]
    lines = [
        f"{n}.dcm,{'ab'[n // 3 % 2]},{split[n % 3]},{'mine' if n == 0 else ''},seen"
        for n in range(12)
    ]
    (tmp_path / "labels.csv").write_text("path,label,split,patient,note\n" + "\n".join(lines))
    dest = tmp_path / "out"
    manifest = ingest(Diagnosis(size=32), str(tmp_path), str(dest), parallel=0)
    rows = {row["source"]: row for row in rows_of(dest)}
    assert rows["0.dcm"]["patient"] == "mine" and rows["3.dcm"]["patient"].startswith("dicom-")
    assert json.loads(rows["0.dcm"]["extra"]).keys() == {"note", "dicom"}
    assert manifest["flags"] == {"text burnt in: unknown": 12}


def test_the_split_of_a_patient_stays_when_others_come(tmp_path):
    source = Path(hospital(tmp_path / "in", 30))
    splits = []
    for dest in (tmp_path / "one", tmp_path / "two"):
        ingest(Diagnosis(size=32), str(source), str(dest), parallel=0)
        splits.append({row["source"]: row["split"] for row in rows_of(dest)})
        new = encoded(RAMP, PatientID="somebody")
        (source / "a" / "0.dcm").write_bytes(new)  # first in the order
    assert splits[0].items() <= splits[1].items()


def test_bad_dicom_files_are_set_aside_by_read(tmp_path, grey):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "note.dcm").write_bytes(b"not at all")
    cine = np.stack([np.full((30, 30), 5, np.uint8)] * 2)
    coded = [jpeg(cine[0], "JPEG2000", no_jp2=True), b"junk"]
    file = wrapped(coded, JPEG2000Lossless, cine, NumberOfFrames=2)
    (tmp_path / "a" / "some.dcm").write_bytes(file)
    _, pieces = data.survey(str(tmp_path), size=None, channels=1)
    rows = list(data.read(pieces[0], grey))
    assert "rows" not in pieces[0]
    assert rows[0] == Reject("a/note.dcm", dicom.NO_PREAMBLE)
    assert rows[1]["source"] == "a/some.dcm#1" and rows[2].source == "a/some.dcm#2"


def test_colour_of_dicom_files_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    colour = RANDOM.integers(0, 256, (30, 30, 3), np.uint8)
    (tmp_path / "a" / "1").write_bytes(encoded(colour))
    schema, _ = data.survey(str(tmp_path), size=None, channels=None)
    assert schema["image"].shape == (3, 128, 128)


# --- in a request ---------------------------------------------------------------------------------


def test_an_upload_is_seen_as_in_ingestion(tmp_path, grey):
    file = encoded(RANDOM.integers(0, 4096, (40, 30), np.uint16), BurnedInAnnotation="NO")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(file)
    _, pieces = data.survey(str(tmp_path), size=None, channels=1)
    (row,) = data.read(pieces[0], grey)
    upload = data.parse({"file": file, "filename": "scan"}, grey)
    inline = data.parse({"image": base64.b64encode(file).decode(), "label": "b"}, grey)
    assert np.array_equal(row["image"], upload["image"])
    assert np.array_equal(row["image"], inline["image"]) and inline["label"] == 1
    assert upload.keys() == {"image", "source"}  # nothing of the header


def test_a_frame_is_chosen_in_a_request(grey):
    frames = RANDOM.integers(0, 256, (3, 30, 30), np.uint8)
    item = {"file": encoded(frames, NumberOfFrames=3), "filename": "cine.dcm"}
    got = data.parse({**item, "frame": 2}, grey)["image"]
    assert np.array_equal(got.reshape(30, 30), frames[1])
    for frame, said in (
        (None, r"^cine.dcm: .*name one as frame, 1 to 3"),
        (4, r"^cine.dcm: .*frames are 1 to 3; got 4"),
        (0, "^frame is a whole number"),
        ("2", "^frame is a whole number"),
        (True, "^frame is a whole number"),
    ):
        with pytest.raises(UserError, match=said):
            data.parse({**item, "frame": frame}, grey)
    png = {"file": jpeg(frames[0], "PNG"), "filename": "x.png"}
    assert "image" in data.parse({**png, "frame": 1}, grey)
    with pytest.raises(UserError, match=r"x.png: the file has one frame; got frame 2"):
        data.parse({**png, "frame": 2}, grey)


def test_an_answer_warns_of_text_in_the_picture():
    schema = data.survey.__globals__["_schema"](28, 1, ["a", "b"], False)
    task = Diagnosis(schema=schema, recogniser_width=16, width=0.25)
    model = Model(task, [task.networks()], {})
    file = encoded(RANDOM.integers(0, 256, (28, 28), np.uint8), BurnedInAnnotation="YES")
    plain = jpeg(RANDOM.integers(0, 256, (28, 28), np.uint8), "PNG")
    records = [model.parse({"file": one}) for one in (file, plain)]
    answers = model.answer(records)
    assert answers[0]["warnings"] == [data.BURNED_IN] and "warnings" not in answers[1]
