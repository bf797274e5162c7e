"""Labelled images as records and as tensors: what training, ingestion and serving share.

`survey` (in sources.py) says where images are found; images.py is the way from an image file to
pixels and back, dicom.py that from the frames of a DICOM file.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray import storage
from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Columns, Record, Reject, Source
from aigc_ray.tasks.diagnosis import dicom, images
from aigc_ray.tasks.diagnosis.images import Unreadable, grid, png
from aigc_ray.tasks.diagnosis.sources import open_npz, rows_of, survey

__all__ = ["encode", "grid", "parse", "png", "read", "survey"]

BURNED_IN = "text is burnt into the image, says its header: it may be seen in place of the patient"


def read(source: Source, schema: Schema) -> Iterator[Record | Reject]:
    """The images of one piece of work, a few megabytes in memory at a time."""
    return _read_npz(source, schema) if source["kind"] == "npz" else _read_files(source, schema)


def _read_files(source: Source, schema: Schema) -> Iterator[Record | Reject]:
    channels, size, _ = schema["image"].shape
    for file in source["files"]:
        path, uri = file["path"], storage.join(source["root"], file["path"])
        try:
            if "fault" in file:
                raise Unreadable(file["fault"])
            if file["bytes"] > images.FILE_BYTES:
                raise Unreadable(images.TOO_LARGE)
            label = _label(file["label"], schema["label"])
            content = storage.read_bytes(uri)
            scan = dicom.scan(content, path)
            image = images.pixels(content, channels, size) if scan is None else None
        except storage.Missing:
            yield Reject(path, "the file is missing")
        except Unreadable as fault:
            yield Reject(path, str(fault))
        except UserError as error:
            if storage.local(uri) is None and not isinstance(error, Unlabelled):
                raise  # the store is down or refuses the keys: no fault of this image's
            yield Reject(path, str(error))
        else:
            record = {"image": image, "label": label, "split": file["split"], "source": path}
            record |= {"patient": file.get("patient"), "extra": file.get("extra")}
            yield from (record,) if scan is None else _frames(scan, record, schema)


def _frames(scan: dicom.Scan, record: Record, schema: Schema) -> Iterator[Record | Reject]:
    """Each frame of a DICOM file is a row."""
    channels, size, _ = schema["image"].shape
    for number in range(1, scan.frames + 1):
        source = record["source"] if scan.frames == 1 else f"{record['source']}#{number}"
        try:
            image = images.fit(scan.image(number), channels, size)
            extra = json.loads(record["extra"] or "{}") | {"dicom": scan.kept(number)}
        except Unreadable as fault:
            yield Reject(source, str(fault))
            continue
        yield record | {
            "image": image,
            "source": source,
            "extra": json.dumps(extra),
            "person": None if record["patient"] else scan.patient,
            "flag": None if scan.burned_in == "no" else f"text burnt in: {scan.burned_in}",
        }


class Unlabelled(UserError):  # noqa: N818
    """A label that the schema does not know."""


def _label(names: list[str] | None, field: Field) -> int | np.ndarray | None:
    if names is None:
        return None
    try:
        found = [field.index(name) for name in names]
    except UserError as error:
        raise Unlabelled(str(error)) from None
    if field.kind == "labels":
        vector = np.zeros(field.shape, np.uint8)
        vector[found] = 1
        return vector
    if len(found) != 1:
        raise Unlabelled(f"label is one of {', '.join(field.values)}; got {len(found)} of them")
    return found[0]


def _read_npz(source: Source, schema: Schema) -> Iterator[Record | Reject]:
    uri, split, row = source["uri"], source["split"], 0
    known: dict[int, int | str] = {}  # the index of a label, or what is wrong with it
    try:
        with open_npz(uri) as archive:
            labels = _each(rows_of(uri, archive, f"{split}_labels"))
            for picture in _each(rows_of(uri, archive, f"{split}_images")):
                yield _npz_row(source, schema, row, picture, next(labels), known)
                row += 1
    except UserError as error:
        for lost in range(row, source["rows"]):
            yield Reject(f"{split}/{lost}", str(error))


def _each(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for part in parts:
        yield from part


def _npz_row(
    source: Source,
    schema: Schema,
    row: int,
    picture: np.ndarray,
    number: np.ndarray,
    known: dict[int, int | str],
) -> Record | Reject:
    channels, size, _ = schema["image"].shape
    field, where = schema["label"], f"{source['split']}/{row}"
    label: Any
    if field.kind == "labels":
        label = number.reshape(-1).astype(np.uint8)
        if label.shape != field.shape or number.min() < 0 or number.max() > 1:
            return Reject(where, f"label is {field.shape[0]} zeros and ones")
    else:
        value = int(number.reshape(-1)[0])
        if value not in known:
            try:
                known[value] = field.index(source["names"].get(str(value), str(value)))
            except UserError as error:
                known[value] = str(error)
        label = known[value]
        if isinstance(label, str):
            return Reject(where, label)
    try:
        image = images.array_pixels(picture, channels, size)
    except Unreadable as fault:
        return Reject(where, str(fault))
    split = source["split"]
    return {
        "image": image, "label": label, "split": split, "source": where,
        "patient": None, "extra": None,
    }  # fmt: skip


def parse(item: Mapping[str, Any], schema: Schema) -> Record:
    """One image of a request, as base64 under "image" or as an upload's bytes under "file".

    Of a DICOM file with several frames "frame" names the one that is meant, counted from 1.
    """
    unknown = sorted(item.keys() - {"image", "file", "filename", "frame", "label"})
    if unknown:
        raise UserError(
            f"{unknown[0]} is not known here; an item has image (base64), frame and label"
        )
    if ("image" in item) == ("file" in item):
        raise UserError(
            "image is needed: a PNG, JPEG, TIFF or DICOM file in base64, or an upload as file"
        )
    if "file" in item:
        name, data = str(item.get("filename") or "file"), item["file"]
        if not isinstance(data, bytes):
            raise UserError(f"file is an upload's bytes; got {type(data).__name__}")
    else:
        name, text = "image", item["image"]
        if not isinstance(text, str):
            raise UserError(f"image is base64 text; got {type(text).__name__}")
        if len(text) > images.FILE_BYTES * 4 // 3 + 4:
            raise UserError(f"image: {images.TOO_LARGE}")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise UserError("image is not base64; send the file's bytes in base64") from None
    frame = item.get("frame")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 1):
        raise UserError(f"frame is a whole number from 1 on; got {frame!r}")
    try:
        record: Record = _seen(data, name, frame, schema) | {"source": name}
    except Unreadable as fault:
        raise UserError(f"{name}: {fault}") from None
    label = item.get("label")
    if label is not None:
        field = schema["label"]
        parts = label if isinstance(label, list) else [label]
        if isinstance(label, str) and field.kind == "labels":
            parts = [part.strip() for part in label.split("|") if part.strip()]
        record["label"] = _label([str(part) for part in parts], field)
    return record


def _seen(data: bytes, name: str, frame: int | None, schema: Schema) -> Record:
    """The pixels of an image file, and what its answer must warn of; a header stays here."""
    channels, size, _ = schema["image"].shape
    scan = dicom.scan(data, name)
    if scan is None:
        if frame not in (None, 1):
            raise Unreadable(f"the file has one frame; got frame {frame}")
        return {"image": images.pixels(data, channels, size)}
    if frame is None and scan.frames > 1:
        raise Unreadable(f"the file has several frames: name one as frame, 1 to {scan.frames}")
    image = images.fit(scan.image(frame or 1), channels, size)
    return {"image": image} | ({"warnings": [BURNED_IN]} if scan.burned_in == "yes" else {})


def encode(columns: Columns, row: Tensor, schema: Schema) -> Batch:
    """Pixels from 0..255 to [-1, 1]; a label of -1, or in multi-label 255, is not known."""
    image, label, size = schema["image"], schema["label"], len(row)
    value = {"image": torch.zeros(size, *image.shape)}
    known = {name: torch.zeros(size, dtype=torch.bool) for name in ("image", "label")}
    if "image" in columns:
        pixels = torch.from_numpy(np.array(columns["image"], np.uint8)).reshape(size, *image.shape)
        value["image"] = pixels.to(torch.float32).div_(127.5).sub_(1.0)
        known["image"] |= True
    if label.kind == "labels":
        value["label"] = torch.zeros(size, *label.shape)
        if "label" in columns:
            ones = torch.from_numpy(np.array(columns["label"], np.uint8)).reshape(size, -1)
            known["label"] = (ones <= 1).all(dim=1)
            value["label"] = ones.to(torch.float32) * known["label"][:, None]
    else:
        value["label"] = torch.zeros(size, dtype=torch.int64)
        if "label" in columns:
            index = torch.from_numpy(np.array(columns["label"], np.int64)).reshape(size)
            known["label"] = index >= 0
            value["label"] = index.clamp(min=0)
    return Batch(value, known, torch.ones(size), row)
