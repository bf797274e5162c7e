"""Finding, decoding and encoding of labelled images, without Ray."""

from __future__ import annotations

import base64
import csv
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ray import storage
from aigc_ray.errors import UserError
from aigc_ray.task import Reject
from aigc_ray.tasks.diagnosis import data, images, phantoms

RANDOM = np.random.default_rng(0)


def picture(height=40, width=40, channels=1):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def decode(file, name, schema):
    return data.parse({"file": file, "filename": name}, schema)["image"]


def npz(path, labels=(0, 1, 1), shape=(30, 30), **changes):
    arrays = {}
    for split in ("train", "val", "test"):
        images_ = RANDOM.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
        arrays |= {f"{split}_images": images_, f"{split}_labels": np.array(labels)[:, None]}
    arrays |= changes
    np.savez_compressed(
        path, **{name: array for name, array in arrays.items() if array is not None}
    )
    return str(path)


def table(folder, rows, header=("path", "label")):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    storage.write_bytes(storage.join(str(folder), "labels.csv"), text.getvalue().encode())
    return str(folder)


def everything(uri, *, size=None, channels=None):
    schema, pieces = data.survey(uri, size=size, channels=channels)
    json.dumps(pieces)
    return schema, [row for piece in pieces for row in data.read(piece, schema)]


@pytest.fixture
def grey():
    return data.survey.__globals__["_schema"](28, 1, ["a", "b"], False)


@pytest.fixture
def colour():
    return data.survey.__globals__["_schema"](28, 3, ["a", "b"], False)


# --- sources --------------------------------------------------------------------------------------


def test_npz_gives_its_own_size_and_every_row_unchanged(tmp_path):
    path = npz(tmp_path / "some.npz")
    schema, rows = everything(path)
    assert schema["image"].shape == (1, 30, 30) and schema["label"].values == ("0", "1")
    assert [row["split"] for row in rows] == ["test"] * 3 + ["val"] * 3 + ["train"] * 3
    with np.load(path) as whole:
        assert np.array_equal(rows[-1]["image"].reshape(30, 30), whole["train_images"][2])
    assert [row["label"] for row in rows[:3]] == [0, 1, 1]


def test_npz_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("aigc_ray.tasks.diagnosis.sources.CHUNK", 2000)
    path = npz(tmp_path / "some.npz", labels=(0, 1) * 5)
    _, rows = everything(path)
    with np.load(path) as whole:
        assert np.array_equal(rows[25]["image"].reshape(30, 30), whole["train_images"][5])


def test_npz_in_colour_and_published_names(tmp_path):
    path = npz(tmp_path / "pneumoniamnist_64.npz", shape=(30, 30, 3))
    schema, rows = everything(path)
    assert schema["label"].values == ("normal", "pneumonia")
    with np.load(path) as whole:
        expected = whole["test_images"][1].transpose(2, 0, 1).reshape(-1)
    assert np.array_equal(rows[1]["image"], expected)


def test_npz_multi_label(tmp_path):
    labels = np.array([[0, 1, 1], [0, 0, 0]], np.uint8)
    splits = {f"{split}_labels": labels for split in ("train", "val", "test")}
    schema, rows = everything(npz(tmp_path / "some.npz", labels=(0, 1), **splits))
    assert schema["label"].kind == "labels" and schema["label"].shape == (3,)
    assert rows[0]["label"].tolist() == [0, 1, 1]


def test_label_outside_the_schema_is_set_aside(tmp_path):
    schema, _ = data.survey(npz(tmp_path / "two.npz"), size=None, channels=None)
    _, pieces = data.survey(npz(tmp_path / "x.npz", labels=(0, 1, 7)), size=None, channels=None)
    rows = list(data.read(pieces[0], schema))
    assert rows[2] == Reject("test/2", "label is one of 0, 1; got '7'")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_labels": None}, "no array val_labels"),
        ({"test_images": np.zeros((3, 30, 30), np.float32)}, "test_images holds uint8"),
        ({"train_images": np.array([{}, {}, {}], object)}, "train_images holds uint8"),
        ({"train_labels": np.array(["a", "b", "c"])}, "train_labels holds whole numbers"),
        ({"train_labels": np.zeros((2, 1), np.uint8)}, "train_labels is"),
        ({"train_images": np.zeros((3, 30, 30, 4), np.uint8)}, "train_images is"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        data.survey(npz(tmp_path / "some.npz", **changes), size=None, channels=None)


def test_damaged_npz_costs_the_rows_that_are_lost(tmp_path):
    path = tmp_path / "some.npz"
    npz(path, labels=(0, 1) * 50)
    schema, pieces = data.survey(str(path), size=None, channels=None)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("train_images.npy").header_offset
    whole = bytearray(path.read_bytes())
    whole[at + 30000 : at + 30100] = bytes(100)
    path.write_bytes(whole)
    rows = list(data.read(pieces[2], schema))
    assert len(rows) == 100 and isinstance(rows[-1], Reject)
    assert "damaged or breaks off" in rows[-1].reason
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"is not an \.npz"):
        data.survey(str(path), size=None, channels=None)


def test_folder_of_classes(tmp_path):
    for name in ("ill", "well"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encoded(picture()))
        (tmp_path / name / "Thumbs.db").write_bytes(b"x")
    schema, rows = everything(str(tmp_path))
    assert schema["label"].values == ("ill", "well") and schema["image"].shape == (1, 128, 128)
    assert [(row["label"], row["split"], row["source"]) for row in rows] == [
        (0, None, "ill/1.png"),
        (1, None, "well/1.png"),
    ]


def test_folders_of_splits(tmp_path):
    for split in ("train", "Validation", "test"):
        for name in ("ill", "well"):
            storage.write_bytes(str(tmp_path / split / name / "deep" / "1.png"), encoded(picture()))
    schema, rows = everything(str(tmp_path), size=28)
    assert schema["label"].values == ("ill", "well")
    assert [row["split"] for row in rows] == ["test"] * 2 + ["val"] * 2 + ["train"] * 2


def test_labels_csv_with_split_patient_and_more(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    rows = [("a.png", "ill", "train", "p1", "63"), ("a.png", "", "", "", ""), ("b.png", "well")]
    table(tmp_path, rows, ("path", "label", "split", "patient", "age"))
    schema, found = everything(str(tmp_path), size=28)
    by_split = {None if isinstance(row, Reject) else row["split"]: row for row in found[:1]}
    first = by_split["train"]
    assert (first["patient"], first["extra"]) == ("p1", '{"age": "63"}')
    assert schema["label"].values == ("ill", "well")
    assert found[1]["label"] is None and found[1]["patient"] is None
    assert found[2] == Reject("b.png", "the file is missing")


def test_multi_label_csv(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    table(tmp_path, [("a.png", "mass|nodule"), ("a.png", "|"), ("a.png", ""), ("a.png", "nodule")])
    schema, rows = everything(str(tmp_path), size=28)
    assert schema["label"].kind == "labels" and schema["label"].values == ("mass", "nodule")
    assert [None if r["label"] is None else r["label"].tolist() for r in rows] == [
        [1, 1], [0, 0], None, [0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"file,label\na.png,x\n", "one column 'path'; its columns are file, label"),
        (b"path,label\n", "no rows"),
        (b"path,label\n\xff\xfe,x\n", "not UTF-8"),
        (b'path,label\n"a.png,x\n', "not a CSV"),
        (b"path,label\na.png,\n", "no row with a label"),
        (b"path,label\nb.png,x\n", "none of the first images"),
        (b"path,label\n" + b"".join(b"a.png,%d\n" % i for i in range(1001)), "1001 different"),
    ],
)
def test_labels_csv_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(UserError, match=said):
        data.survey(str(tmp_path), size=None, channels=None)


def test_rows_of_labels_csv_that_are_set_aside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(encoded(picture()))
    (tmp_path / "in" / "a.png").write_bytes(encoded(picture()))
    rows = [("a.png", "x", ""), ("../out.png", "x", ""), ("a.png", "x", "tarin")]
    _, found = everything(table(tmp_path / "in", rows, ("path", "label", "split")), size=28)
    assert found[1:] == [
        Reject("../out.png", "the path leads out of the folder"),
        Reject("a.png", "split is train, val or test; got 'tarin'"),
    ]


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.survey(str(tmp_path / "nowhere"), size=None, channels=None)
    with pytest.raises(UserError, match="does not exist"):
        data.survey(str(tmp_path / "nowhere.npz"), size=None, channels=None)
    with pytest.raises(UserError, match="holds no files"):
        data.survey(str(tmp_path), size=None, channels=None)
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    with pytest.raises(UserError, match=r"neither labels\.csv nor"):
        data.survey(str(tmp_path), size=None, channels=None)
    for size in (27, 257):
        with pytest.raises(UserError, match="28 to 256"):
            data.survey(str(tmp_path), size=size, channels=None)
    with pytest.raises(UserError, match="channels is 1"):
        data.survey(str(tmp_path), size=None, channels=2)


def test_sources_in_a_bucket(s3, tmp_path):
    storage.write_bytes(storage.join(s3, "few/a/1.png"), encoded(picture()))
    storage.write_bytes(storage.join(s3, "few/b/1.jpg"), encoded(picture(), "JPEG"))
    schema, rows = everything(storage.join(s3, "few"), size=28)
    assert schema["label"].values == ("a", "b") and len(rows) == 2
    path = npz(tmp_path / "some.npz")
    storage.write_bytes(storage.join(s3, "some.npz"), (tmp_path / "some.npz").read_bytes())
    here, there = everything(path)[1], everything(storage.join(s3, "some.npz"))[1]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(here, there, strict=True))
    with pytest.raises(UserError, match="bucket"):
        data.survey("s3://no-such-bucket/x", size=None, channels=None)


def test_colour_is_found_from_the_images(tmp_path):
    for number in range(3):
        grey = np.repeat(picture()[..., None], 3, 2)  # three equal channels count as one
        (tmp_path / f"{number}.png").write_bytes(encoded(grey))
    rows = [(f"{number}.png", "x") for number in range(3)]
    assert everything(table(tmp_path, rows))[0]["image"].shape == (1, 128, 128)
    (tmp_path / "2.png").write_bytes(encoded(picture(channels=3)))
    assert everything(str(tmp_path))[0]["image"].shape == (3, 128, 128)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_lossless_images_keep_their_pixels(grey, colour, kind):
    array = picture(28, 28)
    assert np.array_equal(decode(encoded(array, kind), "x", grey), array.reshape(-1))
    three = decode(encoded(array, kind), "x", colour).reshape(3, 28, 28)
    assert all(np.array_equal(channel, array) for channel in three)
    array = picture(28, 28, 3)
    got = decode(encoded(array, kind), "x", colour).reshape(3, 28, 28)
    assert np.array_equal(got, array.transpose(2, 0, 1))


def test_letterbox_keeps_proportions(grey):
    got = decode(encoded(np.full((100, 50), 200, np.uint8)), "x", grey).reshape(28, 28)
    assert np.all(got[:, 7:21] == 200) and np.all(got[:, :7] == 0) and np.all(got[:, 21:] == 0)


def test_sixteen_bits_and_floats_are_spread(grey):
    ramp = np.linspace(100, 4095, 28 * 28).reshape(28, 28)  # 12 bits in 16, as CT exports are
    for array, kind in ((ramp.astype(np.uint16), "PNG"), (ramp.astype(np.uint16), "TIFF"),
                        (ramp.astype(np.float32), "TIFF")):  # fmt: skip
        got = decode(encoded(array, kind), "x", grey)
        assert got.min() == 0 and got.max() == 255 and abs(int(got[392]) - 128) <= 1
    flat = decode(encoded(np.full((28, 28), 7, np.uint16)), "x", grey)
    assert not flat.any()


def test_orientation_is_applied(grey):
    array = np.zeros((28, 28), np.uint8)
    array[:14] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    got = decode(encoded(array, "PNG", exif=exif), "x", grey).reshape(28, 28)
    assert np.all(got[:, 14:] == 255) and np.all(got[:, :14] == 0)


def test_large_jpeg_is_decoded_small_but_alike(grey):
    smooth = np.add.outer(np.arange(1200), np.arange(1200)) * 255 // 2398
    whole = np.asarray(Image.fromarray(smooth.astype(np.uint8)).resize((28, 28), 3)).astype(int)
    got = decode(encoded(smooth.astype(np.uint8), "JPEG", quality=95), "x", grey)
    assert np.abs(got.reshape(28, 28) - whole).max() <= 3


def transparent():
    return encoded(np.dstack([picture(channels=3), np.full((40, 40), 9, np.uint8)]))


def bomb():
    """A PNG whose header promises 30,000 x 30,000 pixels."""
    whole = bytearray(encoded(picture()))
    whole[16:24] = struct.pack(">II", 30_000, 30_000)
    head = bytes(whole[12:29])
    import zlib

    whole[29:33] = struct.pack(">I", zlib.crc32(head))
    return bytes(whole)


def nan():
    array = np.ones((40, 40), np.float32)
    array[3, 3] = np.nan
    return encoded(array, "TIFF")


def pages():
    file = io.BytesIO()
    frames = [Image.fromarray(picture()) for _ in range(3)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "empty"),
        (lambda: b"a letter to the hospital", "not a PNG, JPEG, TIFF or DICOM"),
        (lambda: encoded(picture())[:300], "damaged or breaks off"),
        (lambda: encoded(picture(), "JPEG")[:200], "damaged or breaks off"),
        (lambda: encoded(picture(), "GIF"), "not a PNG, JPEG, TIFF or DICOM"),
        (lambda: encoded(picture(channels=3)), "in colour where the data set is grey"),
        (transparent, "transparent"),
        (bomb, "more than 50 million pixels"),
        (nan, "NaN"),
        (pages, "several images"),
    ],
)
def test_bad_images_say_what_is_wrong(grey, make, said):
    with pytest.raises(UserError, match=f"^scan.png: .*{said}"):
        decode(make(), "scan.png", grey)


def test_pixel_limit_below_pillows_own(grey, monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 1000)
    with pytest.raises(UserError, match="million pixels"):
        decode(encoded(picture()), "x", grey)


def test_bad_files_are_set_aside_and_the_others_read(tmp_path, monkeypatch):
    for name, content in {
        "good.png": encoded(picture()), "text.png": b"hello",
        "colour.png": encoded(picture(channels=3)),
        "empty.png": b"", "big.png": encoded(picture(200, 200)), "gone.png": encoded(picture()),
    }.items():  # fmt: skip
        storage.write_bytes(str(tmp_path / "x" / name), content)
    schema, pieces = data.survey(str(tmp_path), size=28, channels=1)
    (tmp_path / "x" / "gone.png").unlink()  # after it was found
    monkeypatch.setattr(images, "FILE_BYTES", 20_000)
    found = {
        getattr(row, "source", None) or row["source"]: row for row in data.read(pieces[0], schema)
    }
    assert not isinstance(found["x/good.png"], Reject)
    reasons = {name: row.reason for name, row in found.items() if isinstance(row, Reject)}
    assert reasons == {
        "x/text.png": "the file is not a PNG, JPEG, TIFF or DICOM image",
        "x/colour.png": "the image is in colour where the data set is grey (channels=1)",
        "x/empty.png": "the file is empty",
        "x/big.png": images.TOO_LARGE,
        "x/gone.png": "the file is missing",
    }


# --- requests and tensors -------------------------------------------------------------------------


def test_a_request_and_training_see_the_same_pixels(grey):
    file = encoded(picture(50, 30))
    by_json = data.parse({"image": base64.b64encode(file).decode(), "label": "b"}, grey)
    by_upload = data.parse({"file": file, "filename": "x.png"}, grey)
    assert np.array_equal(by_json["image"], by_upload["image"])
    assert by_json["label"] == 1 and by_upload["source"] == "x.png"


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({}, "image is needed"),
        ({"image": "", "file": b""}, "image is needed"),
        ({"image": "!!!"}, "image is not base64"),
        ({"image": 3}, "image is base64 text; got int"),
        ({"file": "text"}, "file is an upload's bytes"),
        ({"image": "aGVsbG8="}, "image: the file is not a PNG"),
        ({"picture": "x"}, "picture is not known"),
    ],
)
def test_requests_that_are_refused(grey, item, said):
    with pytest.raises(UserError, match=said):
        data.parse(item, grey)


def test_label_of_a_request_is_checked(grey):
    with pytest.raises(UserError, match="label is one of a, b; got 'c'"):
        data.parse({"file": encoded(picture()), "label": "c"}, grey)


def test_encode_gives_pixels_between_minus_one_and_one(colour):
    array = np.zeros((2, 3 * 28 * 28), np.uint8)
    array[1] = 255
    array.setflags(write=False)  # as Arrow's memory is
    batch = data.encode({"image": array, "label": np.array([1, -1])}, torch.arange(2), colour)
    assert batch.value["image"].shape == (2, 3, 28, 28)
    assert torch.all(batch.value["image"][0] == -1) and torch.all(batch.value["image"][1] == 1)
    assert batch.value["label"].tolist() == [1, 0] and batch.known["label"].tolist() == [
        True,
        False,
    ]
    assert batch.weight.tolist() == [1, 1] and batch.row.tolist() == [0, 1]
    alone = data.encode({"image": array.reshape(2, 3, 28, 28)}, torch.arange(2), colour)
    assert torch.equal(alone.value["image"], batch.value["image"])
    assert not alone.known["label"].any() and alone.value["label"].dtype == torch.int64


def test_encode_of_several_labels():
    schema = data.survey.__globals__["_schema"](28, 1, ["a", "b"], True)
    label = np.array([[1, 0], [255, 255]], np.uint8)
    batch = data.encode({"label": label}, torch.arange(2), schema)
    assert batch.value["label"].tolist() == [[1, 0], [0, 0]]
    assert batch.known["label"].tolist() == [True, False]
    assert not batch.known["image"].any() and batch.value["image"].shape == (2, 1, 28, 28)


def test_png_and_grid_can_be_read_back():
    image = torch.linspace(-1, 1, 3 * 8 * 6).reshape(3, 8, 6)
    with Image.open(io.BytesIO(data.png(image))) as opened:
        assert opened.size == (6, 8) and opened.mode == "RGB"
        again = np.asarray(opened).transpose(2, 0, 1)
    assert np.abs(again / 127.5 - 1 - image.numpy()).max() <= 0.5 / 127.5 + 1e-6
    with Image.open(io.BytesIO(data.grid(torch.ones(5, 1, 8, 6), 3))) as opened:
        assert opened.size == (3 * 8 - 2, 2 * 10 - 2) and opened.mode == "L"
        assert np.asarray(opened)[10:, 16:].max() == 0  # the sixth place is empty


# --- phantoms -------------------------------------------------------------------------------------


def test_phantoms_are_seeded_synthetic_and_half_ill(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        phantoms.write(tmp_path / f"{name}.npz", train=20, val=6, test=6, size=32, seed=seed)
    a, b, c = (everything(str(tmp_path / f"{name}.npz"))[1] for name in "abc")
    assert all(np.array_equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0]["image"], c[0]["image"])
    schema, pieces = data.survey(str(tmp_path / "a.npz"), size=None, channels=None)
    assert all(piece["synthetic"] for piece in pieces) and schema["image"].shape == (1, 32, 32)
    assert schema["label"].values == phantoms.CLASSES
    assert sum(row["label"] for row in a if row["split"] == "train") == 10
    with pytest.raises(UserError, match="28 to 256"):
        phantoms.write(tmp_path / "d.npz", size=20)
