"""Finding labelled images, and cutting the work of reading them into pieces.

What is understood, on a local path or under s3://bucket/prefix:

* a MedMNIST `.npz` (`train_images`, `train_labels`, and the same for `val` and `test`; perhaps
  `classes`, the classes' names, and `synthetic` where the images are computed);
* a folder with `labels.csv`: columns `path` and `label`, optionally `split` and `patient`; further
  columns are kept as text. Where any label holds a `|` the labels are multi-label, as in
  `mass|nodule`; a lone `|` says that there is none. An empty label is unknown;
* a folder with one sub-folder per class, or with train, val and test folders of such.

In folders every file is taken, whatever its name is; a DICOM file is known by what it holds.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from aigc_ray import storage
from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Source
from aigc_ray.tasks.diagnosis import dicom, images
from aigc_ray.tasks.diagnosis.images import Unreadable

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ORDER = ("test", "val", "train")  # the split that keeps a duplicate comes first
NAMES = {  # as MedMNIST publishes them; by the beginning of the file's name
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "retinamnist": ("0", "1", "2", "3", "4"),
}
FILES = 64  # images in one piece of work
PROBES = 16  # images that are looked at to tell grey from colour
CLASSES = 1000  # more distinct labels than this are no classes
CHUNK = 4 << 20  # bytes of an .npz that are decompressed at once
LITTER = {"thumbs.db", "desktop.ini", "dicomdir"}
SINGLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # files of one image


def survey(uri: str, *, size: int | None, channels: int | None) -> tuple[Schema, list[Source]]:
    """The schema of a source and the pieces of work it falls into, those of a split together.

    Raises:
        UserError: there is nothing at `uri`, or it is laid out in no way that is understood.
    """
    if size is not None and not images.SMALLEST <= size <= images.LARGEST:
        bounds = f"{images.SMALLEST} to {images.LARGEST}"
        raise UserError(f"size is {bounds} pixels; got {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"channels is 1 (grey) or 3 (colour); got {channels}")
    if uri.lower().endswith(".npz"):
        return _survey_npz(uri, size, channels)
    found = storage.files(uri)
    if not found:
        if storage.local(uri) is not None and not storage.exists(uri):
            raise UserError(f"{uri} does not exist")
        raise UserError(
            f"{uri} holds no files; a source is an .npz file, a folder with labels.csv, or a "
            "folder with one sub-folder per class"
        )
    if len(found) == 1 and next(iter(found)).lower().endswith(".npz"):
        return _survey_npz(storage.join(uri, next(iter(found))), size, channels)
    multiple, files = _from_csv(uri, found) if "labels.csv" in found else _from_folders(uri, found)
    names = sorted({name for file in files for name in file["label"] or []})
    if len(names) > CLASSES:
        raise UserError(f"{uri} has {len(names)} different labels; at most {CLASSES} are classes")
    if not names:
        raise UserError(f"{uri} has no row with a label; the column label names a row's class")
    if channels is None:
        channels = _channels(uri, files)
    return _schema(size or 128, channels, names, multiple), _pieces(uri, files)


def _schema(size: int, channels: int, names: list[str], multiple: bool) -> Schema:
    image = Field(
        name="image", kind="image", parts=("generated", "input"), shape=(channels, size, size)
    )
    label = Field(
        name="label",
        kind="labels" if multiple else "category",
        parts=("condition", "target"),
        shape=(len(names),) if multiple else (),
        values=tuple(names),
    )
    return Schema((image, label))


def _from_csv(uri: str, found: dict[str, int]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the labels are multi-label, and a dictionary for each row."""
    where = storage.join(uri, "labels.csv")
    try:
        text = storage.read_bytes(where, limit=1 << 30).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="", strict=True)
        header = [name.strip() for name in table.fieldnames or []]
        table.fieldnames = header
        for column in ("path", "label"):
            if header.count(column) != 1:
                columns = ", ".join(header) or "none"
                raise UserError(f"{where} needs one column {column!r}; its columns are {columns}")
        rows = list(table)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start})") from None
    except csv.Error as error:
        raise UserError(f"{where} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{where} has no rows below its header")
    multiple = any("|" in row["label"] for row in rows)
    known = {"path", "label", "split", "patient", ""}
    others = [name for name in header if name not in known]
    files = []
    for row in rows:
        path, label = row["path"].strip().replace("\\", "/").removeprefix("./"), row["label"]
        names = [name.strip() for name in label.split("|")] if multiple else [label.strip()]
        split = (row.get("split") or "").strip()
        file = {
            "path": path,
            "bytes": found.get(path, 0),
            "label": [name for name in names if name] if label.strip() else None,
            "split": SPLITS.get(split.lower()),
            "patient": (row.get("patient") or "").strip() or None,
        }
        if others:
            file["extra"] = json.dumps({name: row[name] for name in others})
        if path not in found:
            outside = path.startswith("/") or "://" in path or ".." in path.split("/")
            file["fault"] = "the path leads out of the folder" if outside else "the file is missing"
        elif split and file["split"] is None:
            file["fault"] = f"split is train, val or test; got {split!r}"
        files.append(file)
    return multiple, files


def _from_folders(uri: str, found: dict[str, int]) -> tuple[bool, list[dict[str, Any]]]:
    paths = {path: path.split("/") for path in found}
    tops = {parts[0].lower() for parts in paths.values() if len(parts) > 1}
    splits = bool(tops) and tops <= SPLITS.keys()
    files = []
    for path, parts in paths.items():
        if parts[-1].lower() in LITTER or len(parts) < (3 if splits else 2):
            continue
        split = SPLITS[parts[0].lower()] if splits else None
        label = parts[1] if splits else parts[0]
        files.append({"path": path, "bytes": found[path], "label": [label], "split": split})
    if not files:
        raise UserError(
            f"{uri} holds neither labels.csv nor a sub-folder per class; give it a labels.csv with "
            "the columns path and label"
        )
    return False, files


def _channels(uri: str, files: list[dict[str, Any]]) -> int:
    """3 if any of a few readable images is in colour, else 1."""
    usable = [file for file in files if "fault" not in file]
    readable, fault = 0, "every row names a file that is missing"
    for file in usable[:: max(1, len(usable) // PROBES)][:PROBES]:
        try:
            data = storage.read_bytes(storage.join(uri, file["path"]), limit=images.FILE_BYTES)
            scan = dicom.scan(data, file["path"])
            if (scan.image(1) if scan else images.load(data)).mode == "RGB":
                return 3
            readable += 1
        except (UserError, Unreadable) as error:
            fault = f"{file['path']}: {error}"
    if not readable:
        raise UserError(f"none of the first images of {uri} can be read ({fault})")
    return 1


def _pieces(uri: str, files: list[dict[str, Any]]) -> list[Source]:
    pieces: list[Source] = []
    for split in (*ORDER, None):
        part = [file for file in files if file.get("split") == split]
        for start in range(0, len(part), FILES):
            some = part[start : start + FILES]
            piece: Source = {"kind": "files", "root": uri, "split": split, "files": some}
            if all(file["path"].lower().endswith(SINGLE) for file in some):
                piece["rows"] = len(some)  # others may hold any number of frames
            pieces.append(piece)
    return pieces


def _survey_npz(uri: str, size: int | None, channels: int | None) -> tuple[Schema, list[Source]]:
    with open_npz(uri) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = [f"{split}_{part}" for split in ORDER for part in ("images", "labels")]
        lacking = [name for name in wanted if name not in members]
        if lacking:
            raise UserError(f"{uri} has no array {', '.join(lacking)}; a MedMNIST file holds them")
        shapes = {name: _header(uri, archive, name)[1] for name in wanted}
        found: set[int] = set()
        for split in ORDER:
            image, label = shapes[f"{split}_images"], shapes[f"{split}_labels"]
            if len(image) not in (3, 4) or image[3:] not in ((), (1,), (3,)):
                raise UserError(f"{uri}: {split}_images is (N, H, W) or (N, H, W, 3); got {image}")
            if len(label) not in (1, 2) or label[0] != image[0]:
                raise UserError(f"{uri}: {split}_labels is ({image[0]}, 1) or (…, k); got {label}")
            for rows in rows_of(uri, archive, f"{split}_labels"):
                found.update(np.unique(rows).tolist())
        own_names = _class_names(uri, archive) if "classes" in members else []
    image, label = shapes["train_images"], shapes["train_labels"]
    multiple = len(label) == 2 and label[1] > 1
    count = label[1] if multiple else len(found)
    names = [str(value) for value in (range(count) if multiple else sorted(found))]
    if not names:
        raise UserError(f"{uri} holds no rows")
    if len(names) > CLASSES:
        raise UserError(f"{uri} has {len(names)} different labels; at most {CLASSES} are classes")
    for stem, published in NAMES.items():
        if storage.name(uri).startswith(stem) and len(published) == count:
            names = list(published)
    names = own_names if len(own_names) == count else names
    numbers = range(count) if multiple else sorted(found)
    own = min(max((*image[1:3], images.SMALLEST)), images.LARGEST)
    schema = _schema(size or own, channels or (image[3:] or (1,))[0], names, multiple)
    pieces: list[Source] = [
        {
            "kind": "npz",
            "uri": uri,
            "split": split,
            "rows": shapes[f"{split}_images"][0],
            "names": dict(zip(map(str, numbers), names, strict=True)),
            "synthetic": "synthetic" in members,
            "crc": [members[f"{split}_{part}"].CRC for part in ("images", "labels")],
        }
        for split in ORDER
    ]
    return schema, pieces


@contextmanager
def open_npz(uri: str) -> Iterator[zipfile.ZipFile]:
    """The .npz, read from where it lies by pieces as they are asked for."""
    if not storage.exists(uri):
        raise UserError(f"{uri} does not exist")
    system, path = storage.filesystem(uri)
    # Buffered, since zipfile reads a few hundred bytes at a time and each read is a request in S3.
    with system.open_input_file(path) as raw, io.BufferedReader(raw, 1 << 20) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError):  # Arrow raises the second for a tiny file
            raise UserError(f"{uri} is not an .npz file (a zip archive of arrays)") from None
        with archive:
            yield archive


def _open(uri: str, archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], Any, tuple[int, ...]]:
    """A member after its header, with its type and shape. Nothing is ever unpickled."""
    file = archive.open(f"{name}.npy")
    try:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, columns_first, dtype = header(file)
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{uri}: {name} is not a numpy array ({error})") from None
    whole = dtype.kind in "uib" if name.endswith("labels") else dtype == np.uint8
    if not whole or (columns_first and len(shape) > 1):
        expected = "whole numbers" if name.endswith("labels") else "uint8 in C order"
        raise UserError(f"{uri}: {name} holds {expected}; got {dtype}")
    return file, dtype, shape


def _class_names(uri: str, archive: zipfile.ZipFile) -> list[str]:
    """The array `classes`, which our own phantoms carry: the names of labels 0, 1, …"""
    with archive.open("classes.npy") as file:
        data = file.read(1 << 20)
    try:
        names = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{uri}: classes is not an array of texts ({error})") from None
    return [str(name) for name in names.reshape(-1)]


def _header(uri: str, archive: zipfile.ZipFile, name: str) -> tuple[Any, tuple[int, ...]]:
    file, dtype, shape = _open(uri, archive, name)
    file.close()
    return dtype, shape


def rows_of(uri: str, archive: zipfile.ZipFile, name: str) -> Iterator[np.ndarray]:
    """The rows of a member, a few megabytes at a time."""
    file, dtype, shape = _open(uri, archive, name)
    with file:
        width = max(1, int(np.prod(shape[1:]))) * dtype.itemsize
        step = max(1, CHUNK // width)
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            try:
                data = file.read(count * width)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
                data = b""
            if len(data) < count * width:
                raise UserError(f"{uri}: {name} is damaged or breaks off after row {start}")
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
