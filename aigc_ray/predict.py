"""Answers for many files at once, written beside their names."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from aigc_ray import registry, storage
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.model import Model

CHUNK = 64  # files that a worker reads and answers at a time


def predict(model: str, source: str, out: str) -> dict[str, Any]:
    """Answer for a file, or for every file below a folder or bucket.

    A file that cannot be read is written down with its reason and does not end the work. `out` ends
    in `.jsonl`, `.csv` or `.parquet`.

    Raises:
        UserError: the model or the source does not exist, or `out` has another ending.
    """
    ending = out.rpartition(".")[2]
    if ending not in ("jsonl", "csv", "parquet"):
        raise UserError(f"{out} must end in .jsonl, .csv or .parquet")
    found = registry.resolve(model)
    registry.fetch(model)
    paths = [storage.join(source, name) for name in storage.files(source)]
    if not paths and storage.exists(source):
        paths = [source]
    if not paths:
        raise UserError(f"{source} holds no files")
    rows = [row for chunk in _answered(model, paths) for row in chunk]
    storage.write_bytes(out, _encoded(rows, ending))
    failed = sum("error" in row for row in rows)
    return {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "answered": len(rows) - failed,
        "failed": failed,
        "out": out,
    }


def _answered(model: str, paths: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    if len(chunks) == 1:
        yield _answer(model, chunks[0])
        return
    import ray

    with session():
        answer = ray.remote(_answer)
        yield from ray.get([answer.remote(model, chunk) for chunk in chunks])


def _answer(model: str, paths: Sequence[str]) -> list[dict[str, Any]]:
    opened = Model.open(registry.fetch(model))
    rows: list[dict[str, Any]] = [{"path": path} for path in paths]
    records, places = [], []
    for place, path in enumerate(paths):
        try:
            records.append(opened.parse(path))
            places.append(place)
        except UserError as fault:
            rows[place]["error"] = str(fault)
    for place, answer in zip(places, opened.answer(records), strict=True):
        rows[place] |= answer
    return rows


def _encoded(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    plain = [
        {n: json.dumps(v) if isinstance(v := row.get(n), (dict, list)) else v for n in names}
        for row in rows
    ]
    table, buffer = pa.Table.from_pylist(plain), io.BytesIO()
    if ending == "csv":
        pyarrow.csv.write_csv(table, buffer)
    else:
        pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
