"""The DICOM files that pydicom is tested with: each is ingested, or set aside with its reason.

Run by `make check-real` with AIGC_DATA_MIRROR set.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter

import pyarrow.parquet as pq
import pytest

from aigc_ray import storage
from aigc_ray.ingest import ingest
from aigc_ray.tasks.diagnosis.task import Diagnosis

pytestmark = pytest.mark.real

BROKEN = {  # or without pixels, or of a form that nothing reads
    "JPEG-lossy.dcm": "JPEG Extended (Process 2 and 4) is not read with 12 bits",
    "JPGExtended.dcm": "JPEG Extended (Process 2 and 4) is not read with 12 bits",
    "MR_truncated.dcm": "the pixel data break off after 8130 of 8192 bytes",
    "badVR.dcm": "NumberOfFrames in the DICOM header is missing or no number",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "the pixel data are damaged or break off",
    "empty_charset_LEI.dcm": "the DICOM file holds no pixels",
    "liver_deflate.dcm": "the transfer syntax 1.2.840.10008.1.2.8.1 is not read",
    "meta_missing_tsyntax.dcm": "the DICOM header names no transfer syntax",
    "no_meta.dcm": "DICM does not follow 128 bytes of preamble",
    "rtplan.dcm": "the DICOM file holds no pixels (Modality is RTPLAN)",
    "rtplan_truncated.dcm": "the DICOM file holds no pixels (Modality is RTPLAN)",
    "rtstruct.dcm": "DICM does not follow 128 bytes of preamble",
    "test-SR.dcm": "the DICOM file holds no pixels (Modality is SR)",
    "waveform_ecg.dcm": "the DICOM file holds no pixels (Modality is ECG)",
}
COMPRESSED = {  # read where the extra is installed
    "HTJ2K_08_RGB.dcm", "JLSL_16_15_1_1F.dcm", "JPEG-LL.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "bad_sequence.dcm",
}  # fmt: skip
FRAMES = {
    "OBXXXX1A_rle_2frame.dcm": 2, "SC_rgb_rle_2frame.dcm": 2, "emri_small.dcm": 10,
    "emri_small_RLE.dcm": 10, "emri_small_jpeg_2k_lossless.dcm": 10, "examples_ybr_color.dcm": 30,
    "liver.dcm": 3, "rtdose.dcm": 15,
}  # fmt: skip
HELD_BACK = {  # each of another patient
    "examples_overlay.dcm": ("a", "val"), "color-pl.dcm": ("b", "val"),
    "MR2_J2KI.dcm": ("a", "test"), "image_dfl.dcm": ("b", "test"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """The rows of a data set of all files, the sources set aside with their reasons."""
    where = tmp_path_factory.mktemp("dicom")
    mirror = os.environ.get("AIGC_DATA_MIRROR")
    if not mirror:
        pytest.skip("AIGC_DATA_MIRROR is not set")
    packed = storage.read_bytes(storage.join(mirror, "imaging/dicom_pydicom/dicom_samples.zip"))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(where)
    names = sorted(path.name for path in (where / "dicom").iterdir())
    assert len(names) == 52
    lines = ["path,label,split"]
    for number, name in enumerate(names):
        lines.append(f"{name},{'ab'[number % 2]},train" if name not in HELD_BACK else
                     f"{name},{','.join(HELD_BACK[name])}")  # fmt: skip
    (where / "dicom" / "labels.csv").write_text("\n".join(lines))
    dest = where / "set"
    manifest = ingest(
        Diagnosis(size=64, channels=3), str(where / "dicom"), str(dest),
        max_reject_fraction=1.0, parallel=0,
    )  # fmt: skip
    rows = [row for part in dest.glob("*/*.parquet") for row in pq.read_table(part).to_pylist()]
    rejects = pq.read_table(dest / "rejects.parquet").to_pylist()
    return names, manifest, rows, {row["source"]: row["reason"] for row in rejects}


def test_each_file_is_ingested_or_set_aside_with_its_reason(data_set):
    names, manifest, rows, rejects = data_set
    frames = Counter(row["source"].partition("#")[0] for row in rows)
    assert frames.keys() | rejects.keys() == {*names} and not frames.keys() & rejects.keys()
    assert {name: count for name, count in frames.items() if count > 1} == FRAMES
    for name, reason in rejects.items():
        assert reason.endswith(BROKEN.get(name, "pip install 'aigc_ray[dicom]'")), name
    assert BROKEN.keys() <= rejects.keys() <= BROKEN.keys() | COMPRESSED
    assert len(frames) >= 32 and manifest["rejects"]["count"] == len(rejects)


def test_what_is_told_of_them(data_set):
    _, manifest, rows, _ = data_set
    extra = {row["source"]: json.loads(row["extra"])["dicom"] for row in rows}
    assert extra["CT_small.dcm"] == {
        "Modality": "CT", "Manufacturer": "GE MEDICAL SYSTEMS", "ManufacturerModelName": "RHAPSODE",
        "PatientSex": "O", "rows": 128, "columns": 128, "age_band": "0-9",
        "pixel_spacing_mm": [0.661468, 0.661468], "pixel_spacing_from": "PixelSpacing",
        "burned_in": "unknown",
    }  # fmt: skip
    unknown = sum(one["burned_in"] == "unknown" for one in extra.values())
    assert manifest["flags"] == {"text burnt in: unknown": unknown}


def test_the_same_picture_in_many_forms_is_one(data_set):
    """The lossless forms of an image give the same pixels, bit for bit."""
    _, _, rows, _ = data_set
    images = {row["source"]: row["image"] for row in rows}
    small = {images[name] for name in images if name.startswith("MR_small")}
    assert len(small) == 1
    for number in range(1, 11):
        assert len({images[f"emri_small{kind}.dcm#{number}"]
                    for kind in ("", "_RLE", "_jpeg_2k_lossless")}) == 1  # fmt: skip


def test_nobody_is_named(data_set):
    _, manifest, rows, rejects = data_set
    told = repr([{**row, "image": None, "source": None} for row in rows])
    told += repr(manifest["rejects"]) + repr(list(rejects.values()))
    for secret in ("CompressedSamples", "CQ500", "11-05-25-142825", "021234567", "id11111"):
        assert secret not in told
    who = {row["source"].partition("#")[0]: row["patient"] for row in rows}
    assert who["CT_small.dcm"] == who["parametric_map_float.dcm"] != who["MR_small.dcm"]
    assert all(name.startswith("dicom-") for name in who.values() if name)
