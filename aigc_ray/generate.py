"""Samples in number, written to a folder or a Parquet file; many are made in parallel."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from aigc_ray import registry, storage
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.task import Item, Shortfall

CHUNK = 256  # samples a worker makes from one seed


def generate(
    model: str, n: int, out: str, seed: int = 0, request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make `n` samples as `request` asks for them.

    Chunk c of the samples has seed `seed + c`, so that a sample depends on nothing but the model
    and its own seed and number. `out` is a `.parquet` file, for what has no files also a `.csv`, or
    a folder that gets the files and `items.jsonl`, which says of each what it is.

    Raises:
        UserError: the model does not exist, or cannot make what is asked for.
    """
    if n < 1:
        raise UserError(f"n is at least 1; got {n}")
    found = registry.resolve(model)
    registry.fetch(model)
    chunks = [
        {**(request or {}), "n": min(CHUNK, n - start), "seed": seed + number}
        for number, start in enumerate(range(0, n, CHUNK))
    ]
    results = list(_made(model, chunks))
    items = [item for item in results if not isinstance(item, Shortfall)]
    short = [result._asdict() for result in results if isinstance(result, Shortfall)]
    if out.endswith((".csv", ".parquet")):
        if out.endswith(".csv") and any(isinstance(v, bytes) for v in items[0].values()):
            raise UserError(f"{out}: a .csv holds no images; name a folder or a .parquet file")
        storage.write_bytes(out, _table(items, out))
    else:
        _write_files(items, out)
    return {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "n": len(items),
        "shortfall": short,
        "out": out,
    }


def _table(items: list[Item], out: str) -> bytes:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table, buffer = pa.Table.from_pylist(items), io.BytesIO()
    if out.endswith(".csv"):
        pyarrow.csv.write_csv(table, buffer)
    else:
        pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _write_files(items: list[Item], out: str) -> None:
    lines = []
    for number, item in enumerate(items):
        described: Item = {"sample": number}
        for key, value in item.items():
            if isinstance(value, bytes):
                name = f"{number:06d}.{'png' if key == 'image' else key}"
                storage.write_bytes(storage.join(out, name), value)
                described[key] = name
            else:
                described[key] = value
        lines.append(json.dumps(described))
    storage.write_bytes(storage.join(out, "items.jsonl"), ("\n".join(lines) + "\n").encode())


def _made(model: str, chunks: list[dict[str, Any]]) -> Iterator[Item | Shortfall]:
    if len(chunks) == 1:
        yield from Model.open(registry.fetch(model)).generate(**chunks[0])
        return
    import ray

    with session():
        make = ray.remote(_make)
        # A few in flight at a time: the answers of all would not fit in the object store.
        waiting = [make.remote(model, chunk) for chunk in chunks[:8]]
        for chunk in [*chunks[8:], *[None] * len(waiting)]:
            yield from ray.get(waiting.pop(0))
            if chunk is not None:
                waiting.append(make.remote(model, chunk))


def _make(model: str, chunk: dict[str, Any]) -> list[Item | Shortfall]:
    return Model.open(registry.fetch(model)).generate(**chunk)
