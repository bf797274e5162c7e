"""Rows as Parquet shards: their Arrow types, and writing them straight to where they shall lie.

Images are fixed-size binaries: as fixed-size lists of uint8 Parquet writes and reads them 12 to 60
times slower (measured). What is not known is -1 in a category, 255 in labels, NaN in a number, 0 in
codes and null in a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aigc_ray import storage
from aigc_ray.schema import BYTES, Field, Schema
from aigc_ray.task import Record, Reject

GROUP_ROWS = 256  # rows of a row group, fewer where they would have more than GROUP_BYTES …
GROUP_BYTES = 8 << 20
SMALL_BYTES, MOST_ROWS = 128 << 10, 2048  # … and more where they would have less than this
ABSENT: dict[str, tuple[float, type]] = {
    "image": (0, np.uint8),
    "codes": (0, np.uint8),
    "counts": (0, np.uint8),
    "labels": (255, np.uint8),
    "category": (-1, np.int32),
    "number": (np.nan, np.float32),
    "yes_no": (np.nan, np.float32),
}
MARKS = pa.schema(  # beside the fields of the schema
    [
        ("split", pa.string()),
        ("patient", pa.string()),
        ("source", pa.string()),
        ("extra", pa.string()),
    ]
)
CHECKS = pa.schema(  # not written
    [
        ("content", pa.uint64()),
        ("person", pa.string()),  # who a file's header says the patient is
        ("flag", pa.string()),  # what somebody should know of the row, to be counted
        ("reason", pa.string()),
    ]
)


def arrow_type(field: Field) -> pa.DataType:
    """How a field's column lies in Parquet."""
    size = math.prod(field.shape)
    if field.kind in BYTES:
        return pa.binary(size)
    if field.kind == "category":
        return pa.int32()
    if field.kind == "labels":
        return pa.list_(pa.uint8(), size)
    if field.kind == "text":
        return pa.string()
    return pa.list_(pa.float32(), size) if field.shape else pa.float32()


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of a shard."""
    fields = [pa.field(field.name, arrow_type(field)) for field in schema.fields]
    return pa.schema([pa.field("row", pa.int64()), *fields, *MARKS])


def table(records: Sequence[Record | Reject], schema: Schema) -> pa.Table:
    """Records and rejects as they travel to the writer: a reject's `reason` is not null."""
    rows = [{} if isinstance(record, Reject) else record for record in records]
    columns = [_column(field, [row.get(field.name) for row in rows]) for field in schema.fields]
    for name in ("split", "patient", "extra"):
        columns.append(pa.array([row.get(name) for row in rows], pa.string()))
    sources = [r.source if isinstance(r, Reject) else r.get("source") for r in records]
    columns.insert(-1, pa.array(sources, pa.string()))
    hashed = [field for part in ("generated", "input") for field in schema.part(part)]
    content = [_content(row, hashed) for row in rows]
    columns.append(pa.array(content, pa.uint64()))
    for name in ("person", "flag"):
        columns.append(pa.array([row.get(name) for row in rows], pa.string()))
    reasons = [record.reason if isinstance(record, Reject) else None for record in records]
    columns.append(pa.array(reasons, pa.string()))
    return pa.Table.from_arrays(columns, names=travelling(schema).names)


def travelling(schema: Schema) -> pa.Schema:
    """The columns of `table`."""
    return pa.schema([*list(arrow_schema(schema))[1:], *CHECKS])


def _column(field: Field, values: list[Any]) -> pa.Array:
    size = math.prod(field.shape)
    if field.kind == "text":
        return pa.array(values, pa.string())
    missing, dtype = ABSENT[field.kind]
    array: np.ndarray = np.full((len(values), size), missing, dtype)
    for row, value in zip(array, values, strict=True):
        if value is not None:
            row[:] = np.reshape(value, -1)
    if field.kind in BYTES:
        data = [None, pa.py_buffer(array)]
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(values), data)
    flat = pa.array(array.reshape(-1))
    return flat if not field.shape else pa.FixedSizeListArray.from_arrays(flat, size)


def _content(row: Record, fields: list[Field]) -> int:
    """What equal rows have in common: 64 bits of a hash of what is generated and recognised, or of
    what the task says under "same"."""
    digest = hashlib.sha256()
    if "same" in row:
        digest.update(row["same"])
        return int.from_bytes(digest.digest()[:8], "little")
    for field in dict.fromkeys(fields):
        value = row.get(field.name)
        digest.update(f"{field.name}\0".encode())
        if value is not None:
            text = field.kind == "text"
            digest.update(str(value).encode() if text else np.ascontiguousarray(value).data)
    return int.from_bytes(digest.digest()[:8], "little")


class Shards:
    """A split that is written row group by row group, and rolled into files of one size."""

    def __init__(self, dest: str, split: str, schema: Schema, shard_bytes: int) -> None:
        self.dest, self.split, self.shard_bytes = dest, split, shard_bytes
        self.schema = schema
        self.arrow = arrow_schema(schema)
        width = sum(math.prod(f.shape) for f in schema.fields if f.kind != "text")
        rows = max(GROUP_ROWS, min(MOST_ROWS, SMALL_BYTES // max(1, width)))
        self.group = max(1, min(rows, GROUP_BYTES // max(1, width)))
        self.rows = 0
        self.written: list[dict[str, Any]] = []
        self.counts = {
            field.name: np.zeros(len(field.values), np.int64)
            for field in schema.fields
            if field.kind in ("category", "labels")
        }
        self.waiting: list[pa.Table] = []
        self.file: _Hashed | None = None
        self.writer: Any = None
        self.in_shard = 0

    def add(self, part: pa.Table) -> None:
        for field in self.schema.fields:
            if field.kind == "category":
                index = part[field.name].to_numpy()
                known = index[index >= 0]
                self.counts[field.name] += np.bincount(known, minlength=len(field.values))
            elif field.kind == "labels":
                ones = part[field.name].combine_chunks().flatten().to_numpy()
                ones = ones.reshape(len(part), -1)
                self.counts[field.name] += (ones == 1).sum(axis=0)
        number = pa.array(np.arange(self.rows, self.rows + len(part)))
        self.waiting.append(part.add_column(0, "row", number).select(self.arrow.names))
        self.rows += len(part)
        self._write(last=False)

    def _write(self, *, last: bool) -> None:
        count = sum(map(len, self.waiting))
        while count >= self.group or (last and count):
            whole = pa.concat_tables(self.waiting)
            group, rest = whole.slice(0, self.group), whole.slice(self.group)
            self.waiting = [rest] if len(rest) else []
            count = len(rest)
            if self.writer is None:
                self._open()
            self.writer.write_table(group, row_group_size=self.group)
            self.in_shard += len(group)
            assert self.file is not None
            if self.file.size >= self.shard_bytes:
                self._close()

    def _open(self) -> None:
        system, root = storage.filesystem(self.dest)
        path = f"{root}/{self.split}/part-{len(self.written):05d}.parquet"
        if storage.local(self.dest) is not None:
            system.create_dir(path.rpartition("/")[0])
        self.file = _Hashed(system.open_output_stream(path))
        images = {field.name for field in self.schema.fields if field.kind == "image"}
        others = [name for name in self.arrow.names if name not in images]
        self.writer = pq.ParquetWriter(
            self.file,
            self.arrow,
            compression=dict.fromkeys(others, "zstd"),  # pixels hardly shrink and cost time
            use_dictionary=[n for n in ("split", "patient", "extra") if n in others],
            write_statistics=others,
        )

    def _close(self) -> None:
        assert self.file is not None
        self.writer.close()
        self.file.finish()
        self.written.append(
            {
                "path": f"{self.split}/part-{len(self.written):05d}.parquet",
                "rows": self.in_shard,
                "bytes": self.file.size,
                "sha256": self.file.digest.hexdigest(),
            }
        )
        self.file = self.writer = None
        self.in_shard = 0

    def close(self) -> None:
        """Write what waits and finish the last shard."""
        self._write(last=True)
        if self.file is not None:
            self._close()

    def abandon(self) -> None:
        """After an error: let go of the file that is open, whatever state it is in."""
        self.waiting = []
        if self.file is not None:
            with contextlib.suppress(OSError):  # what it could not write is of no use any more
                self._close()

    def describe(self) -> dict[str, Any]:
        """The split's entry in the manifest; classes are those of the first target that has any."""
        found = [f for f in self.schema.part("target") if f.name in self.counts]
        classes = {}
        if found:
            counted = zip(found[0].values, self.counts[found[0].name].tolist(), strict=True)
            classes = dict(counted)
        return {"rows": self.rows, "classes": classes, "shards": self.written}


class _Hashed(io.RawIOBase):
    """A stream that knows the SHA-256 and the length of what went through it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.stream.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def finish(self) -> None:
        if not self.stream.closed:
            self.stream.close()
