"""Samples in number, written as they are made: to a folder, a table, an SDF or a FASTA file."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aigc_ray import registry, storage
from aigc_ray.bloom import Bloom
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.task import Item, Shortfall

SEEN_BYTES = 64 << 20  # that tell which samples there were: ten bits each of 50 million
FRUITLESS = 3  # chunks in a row without a new sample, after which no more is tried
FASTA = (".fa", ".fasta")
ENDINGS = (".parquet", ".csv", ".sdf", *FASTA)
ENDING_OF = {"image": "png", "map": "png", "pdb": "pdb"}  # of what a folder gets as files
FORMATS = (((".sdf",), "molecules", "smiles"), (FASTA, "sequences", "sequence"))


def generate(
    model: str, n: int, out: str, seed: int = 0, request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make `n` samples as `request` asks for them.

    Chunk c of the samples has seed `seed + c`, so that a sample depends on nothing but the model
    and its own seed and number; chunks are made in parallel, and memory does not grow with their
    number. Where samples of a task must differ, those of later chunks that were there before are
    left out, and others made. `out` is a `.parquet` file, for what has no files also a `.csv`, for
    molecules an `.sdf`, for sequences a `.fa` or `.fasta`, or a folder that gets the files and
    `items.jsonl`, which says of each what it is.

    Raises:
        UserError: the model does not exist, or cannot make what is asked for.
    """
    if n < 1:
        raise UserError(f"n is at least 1; got {n}")
    found = registry.resolve(model)
    opened = Model.open(registry.fetch(model))
    request = dict(request or {})
    for endings, kind, identity in FORMATS:
        if out.endswith(endings) and opened.task.identity != identity:
            raise UserError(f"{out}: only {kind} are written to such a file")
    if out.endswith(".sdf"):
        request["molblock"] = True
    made = _made(model, opened, n, seed, request)
    first = next(made, None)  # a request that cannot be is refused before a file is begun
    short: list[dict[str, Any]] = []
    written = 0
    with _writer(out) as writer:
        parts = [first] if first is not None else []
        for part in _chain(parts, made):
            items = [item for item in part if not isinstance(item, Shortfall)]
            short += [one._asdict() for one in part if isinstance(one, Shortfall)]
            if items:
                writer.write(items)
                written += len(items)
    return {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "n": written,
        "shortfall": short,
        "out": out,
    }


Part = list[Item | Shortfall]


def _chain(parts: list[Part], rest: Iterator[Part]) -> Iterator[Part]:
    yield from parts
    yield from rest


def _made(
    model: str, opened: Model, n: int, seed: int, request: Mapping[str, Any]
) -> Iterator[Part]:
    """The samples chunk by chunk, as many as are wanted."""
    size, mark = opened.task.chunk, opened.task.identity
    if n <= size:
        yield opened.generate(**request, n=n, seed=seed)
        return
    seen = Bloom(np.zeros(SEEN_BYTES if mark else 1, np.uint8))
    left, fruitless = n, 0
    for part in _chunks(model, size, n, seed, request, endless=mark is not None):
        items = [item for item in part if not isinstance(item, Shortfall)]
        if mark is not None:
            old = seen.holds([item[mark] for item in items])
            items = [item for item, was in zip(items, old, strict=True) if not was]
            seen.add([item[mark] for item in items])
        fruitless = 0 if items else fruitless + 1
        items = items[:left]
        left -= len(items)
        if mark is None:  # a chunk's shortfall is the request's
            yield [*items, *(one for one in part if isinstance(one, Shortfall))]
            continue
        if left and fruitless == FRUITLESS:
            why = next((one.reason for one in part if isinstance(one, Shortfall)), "no more differ")
            yield [Shortfall(left, f"{FRUITLESS} chunks in a row brought nothing new: {why}")]
            return
        yield [*items]
        if not left:
            return


def _chunks(
    model: str, size: int, n: int, seed: int, request: Mapping[str, Any], *, endless: bool
) -> Iterator[Part]:
    """Chunks of samples in their order, made in parallel; without end, where others are needed in
    the place of some."""
    import ray

    def asked() -> Iterator[dict[str, Any]]:
        number = 0
        while endless or number * size < n:
            here = size if endless else min(size, n - number * size)
            yield {**request, "n": here, "seed": seed + number}
            number += 1

    with session():
        make = ray.remote(_make)
        # A few in flight at a time: the answers of all would not fit in the object store.
        chunks = asked()
        waiting = [make.remote(model, chunk) for _, chunk in zip(range(8), chunks, strict=False)]
        while waiting:
            yield ray.get(waiting.pop(0))
            if (chunk := next(chunks, None)) is not None:
                waiting.append(make.remote(model, chunk))


def _make(model: str, chunk: dict[str, Any]) -> Part:
    return Model.open(registry.fetch(model)).generate(**chunk)


# --- writing ----------------------------------------------------------------------------------


class _Writer(ABC):
    """Takes samples as they come. What is half written when it fails is no file yet."""

    def __enter__(self) -> _Writer:
        return self

    @abstractmethod
    def write(self, items: list[Item]) -> None: ...

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


def _writer(out: str) -> _Writer:
    if out.endswith(ENDINGS):
        return _File(out)
    return _Folder(out)


class _Folder(_Writer):
    """Files and `items.jsonl`."""

    def __init__(self, out: str) -> None:
        self.out, self.lines = out, io.BytesIO()
        self.count = 0

    def write(self, items: list[Item]) -> None:
        for item in items:
            described: Item = {"sample": self.count}
            for key, value in item.items():
                if isinstance(value, bytes) or key in ENDING_OF:
                    name = f"{self.count:06d}.{ENDING_OF.get(key, key)}"
                    content = value if isinstance(value, bytes) else str(value).encode()
                    storage.write_bytes(storage.join(self.out, name), content)
                    described[key] = name
                else:
                    described[key] = value
            self.lines.write(json.dumps(described).encode() + b"\n")
            self.count += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            storage.write_bytes(storage.join(self.out, "items.jsonl"), self.lines.getvalue())


class _File(_Writer):
    """One file, written beside its name until it is whole; in S3 it appears when it is."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.system, self.path = storage.filesystem(out)
        self.local = storage.local(out)
        self.partial = f"{self.path}.partial" if self.local is not None else self.path
        self.stream: Any = None
        self.table: Any = None

    def write(self, items: list[Item]) -> None:
        if self.stream is None:
            if self.local is not None:
                self.local.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.system.open_output_stream(self.partial)
        if self.out.endswith(".sdf"):
            self.stream.write("".join(map(self._block, items)).encode())
        elif self.out.endswith(FASTA):
            self.stream.write("".join(map(self._record, items)).encode())
        else:
            self._rows(items)

    def _block(self, item: Item) -> str:
        fields = [
            f">  <{name}>\n{value}\n\n"
            for name, value in flat(item).items()
            if name != "molblock" and value is not None and value != ""
        ]
        return f"{item['molblock']}{''.join(fields)}$$$$\n"

    def _record(self, item: Item) -> str:
        about = {"label": item["class"], "gc": item["gc"], "probability": item["probability"]}
        told = " ".join(f"{name}={str(value).replace(' ', '_')}" for name, value in about.items())
        return f">generated_{item['seed']}_{item['number']} {told}\n{item['sequence']}\n"

    def _rows(self, items: list[Item]) -> None:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        if self.out.endswith(".csv") and any(isinstance(v, bytes) for v in items[0].values()):
            raise UserError(f"{self.out}: a .csv holds no images; name a folder or a .parquet file")
        rows = [flat(item) for item in items]
        if self.out.endswith(".csv"):
            rows = [
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows
            ]
        if self.table is None:
            part = pa.Table.from_pylist(rows)
            kind = pa.csv.CSVWriter if self.out.endswith(".csv") else pa.parquet.ParquetWriter
            self.table = kind(self.stream, part.schema)
            self.schema = part.schema
        else:
            part = pa.Table.from_pylist(rows, schema=self.schema)
        self.table.write_table(part)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.stream is None:
            if kind is None:
                storage.write_bytes(self.out, b"")
            return
        if self.table is not None:
            self.table.close()
        self.stream.close()
        if self.local is not None:
            if kind is None:
                self.system.move(self.partial, self.path)
            else:
                self.system.delete_file(self.partial)


def flat(item: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """An item as a row of a table: parts of an object are columns, a list of objects is JSON."""
    found: dict[str, Any] = {}
    for key, value in item.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and (not value or isinstance(value[0], Mapping)):
            found[name] = json.dumps(value)
        else:
            found[name] = value
    return found
