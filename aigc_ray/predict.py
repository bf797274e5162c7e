"""Answers for many files or rows of tables at once, written beside their names."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from aigc_ray import registry, storage, tables
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.model import Model

CHUNK = 64  # files, or rows, that a worker reads and answers at a time
WAITING = 16  # chunks that are being answered at a time

Asked = tuple[dict[str, Any], Any]  # where an item comes from, and the item
Named = tuple[str, str]  # a model, and the hash that tells whether another has its name by now


def predict(model: str, source: str, out: str) -> dict[str, Any]:
    """Answer for a file, or for every file below a folder or bucket.

    Where a task takes tables, each of their rows is answered. What cannot be read is written down
    with its reason and does not end the work. `out` ends in `.jsonl`, `.csv` or `.parquet`.

    Raises:
        UserError: the model or the source does not exist, or `out` has another ending.
    """
    ending = out.rpartition(".")[2]
    if ending not in ("jsonl", "csv", "parquet"):
        raise UserError(f"{out} must end in .jsonl, .csv or .parquet")
    found = registry.resolve(model)
    if found.version is not None:  # meanwhile somebody may move an alias
        model = f"{found.task}:{found.version}"
    paths = [storage.join(source, name) for name in storage.files(source)]
    if not paths and storage.exists(source):
        paths = [source]
    if not paths:
        raise UserError(f"{source} holds no files")
    named = model, found.sha256
    items = _items(paths, _open(*named).task.tabular)
    rows = [row for chunk in _answered(named, items) for row in chunk]
    storage.write_bytes(out, _encoded(rows, ending))
    failed = sum("error" in row for row in rows)
    return {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "answered": len(rows) - failed,
        "failed": failed,
        "out": out,
    }


def _items(paths: Iterable[str], tabular: bool) -> Iterator[Asked]:
    for path in paths:
        if not (tabular and tables.is_table(path)):
            yield {"path": path}, path
            continue
        number = 0
        for number, row in enumerate(tables.read(path), 1):
            yield {"path": path, "row": number}, row
        if not number:
            yield {"path": path, "error": f"{path} holds no rows"}, None


def _answered(named: Named, items: Iterable[Asked]) -> Iterator[list[dict[str, Any]]]:
    rest = iter(items)
    chunks = iter(lambda: tuple(islice(rest, CHUNK)), ())
    first, second = next(chunks, ()), next(chunks, None)
    if second is None:
        yield _answer(named, first)
        return
    import ray

    with session():
        answer = ray.remote(_answer)
        waiting = [answer.remote(named, chunk) for chunk in (first, second)]
        for chunk in chunks:
            if len(waiting) == WAITING:
                yield ray.get(waiting.pop(0))
            waiting.append(answer.remote(named, chunk))
        for one in waiting:
            yield ray.get(one)


@lru_cache(maxsize=1)  # once in each process, which answers many chunks
def _open(model: str, sha256: str) -> Model:
    return Model.open(registry.fetch(model))


def _answer(named: Named, asked: tuple[Asked, ...]) -> list[dict[str, Any]]:
    opened = _open(*named)
    rows = [dict(where) for where, _ in asked]
    records, places = [], []
    for place, (where, item) in enumerate(asked):
        if "error" in where:
            continue
        try:
            if item is None:
                raise UserError("the row has not as many fields as the header")
            records.append(opened.parse(item))
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
