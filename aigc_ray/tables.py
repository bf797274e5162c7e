"""Tables in files: CSV and FASTA, perhaps compressed, and Parquet, row by row, all values as text.

Text is what a declaration of columns is checked against, so a table is the same whether a
spreadsheet wrote it or a program did. Memory does not grow with the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aigc_ray import storage
from aigc_ray.errors import UserError

FASTA = (".fa", ".fa.gz", ".fasta", ".fasta.gz", ".fna", ".fna.gz")
ENDINGS = (".csv", ".csv.gz", ".parquet", *FASTA)
UPLOADS = (".csv", ".csv.gz", *FASTA)  # a page of Parquet may unfold to any size
ROWS = 4096  # of a Parquet file that are held at once
MOST_COLUMNS = 10_000
LINE = 1 << 20  # characters of a line, at most
LETTERS = 1 << 17  # of a sequence in FASTA; what is longer is cut there, and known by its length

Row = dict[str, str]  # "" where nothing stands


def is_table(name: str) -> bool:
    """Whether a file of this name is read as a table."""
    return name.lower().endswith(ENDINGS)


def is_upload(name: str) -> bool:
    """Whether an upload of this name is read as a table."""
    return name.lower().endswith(UPLOADS)


def read(uri: str) -> Iterator[Row | None]:
    """The rows of a file at an address; None for a line that has not the header's columns.

    Raises:
        UserError: there is no such file, it is no table, or it breaks off.
    """
    if not is_table(uri):
        raise UserError(f"{uri} is no table: its name must end in {', '.join(ENDINGS)}")
    system, path = storage.filesystem(uri)
    with _faults(uri):
        if not uri.lower().endswith(".parquet"):
            # It opens a .gz as what is in it.
            with system.open_input_stream(path, buffer_size=1 << 20) as stream:
                yield from _text_rows(stream, uri)
            return
        with system.open_input_file(path) as file:
            yield from _parquet(file)


def lines(uri: str, longest: int = LINE) -> Iterator[str]:
    """The lines of a text file at an address, perhaps compressed.

    Raises:
        UserError: there is no such file, it is not text, it breaks off, or a line is too long.
    """
    system, path = storage.filesystem(uri)
    with _faults(uri), system.open_input_stream(path, buffer_size=1 << 20) as stream:
        yield from _lines(io.TextIOWrapper(stream, "utf-8-sig"), longest)


def parse(content: bytes, name: str, most: int) -> list[Row]:
    """The rows of an upload, CSV, perhaps compressed.

    Raises:
        UserError: it is no table, a line has not the header's columns, or there are more than
            `most` rows.
    """
    file: Any = io.BytesIO(content)
    taken: list[Row] = []
    with _faults(name):
        if name.lower().endswith(".gz"):
            file = gzip.GzipFile(fileobj=file)
        for row in _text_rows(file, name):
            if row is None:
                raise UserError(f"{name}: row {len(taken) + 1} has not the header's columns")
            if len(taken) == most:
                raise UserError(f"{name} has more than {most} rows; send them in several requests")
            taken.append(row)
    if not taken:
        raise UserError(f"{name} holds no rows")
    return taken


def _text_rows(stream: Any, name: str) -> Iterator[Row | None]:
    return _fasta(stream) if name.lower().endswith(FASTA) else _csv(stream)


def _fasta(stream: Any) -> Iterator[Row]:
    """A `name`, what else its line says as `description`, and the `sequence`, whose lines may be of
    any length."""
    text = io.TextIOWrapper(stream, "utf-8-sig")
    row: Row | None = None
    letters: list[str] = []
    size, begins, heads = 0, True, False
    while part := text.readline(1 << 16):
        begun, begins = begins, part.endswith("\n")
        if begun and part.startswith(">"):
            if row is not None:
                yield row | {"sequence": "".join(letters)}
            name, *rest = part[1:].split(maxsplit=1) or [""]
            row, letters, size = {"name": name, "description": "".join(rest).strip()}, [], 0
            heads = not begins
        elif heads:  # the rest of a very long header
            heads = not begins
        elif row is None:
            if part.strip():
                raise UserError("the first line of FASTA begins with >")
        elif size < LETTERS:
            letters.append("".join(part.split())[: LETTERS - size])
            size += len(letters[-1])
    if row is not None:
        yield row | {"sequence": "".join(letters)}


def _csv(stream: Any) -> Iterator[Row | None]:
    # Spreadsheets begin a file with a byte order mark; a semicolon is what some countries use.
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    lines = _lines(text)
    header = next(lines, "")
    comma = ";" if header.count(";") > header.count(",") else ","
    names = next(csv.reader([header], delimiter=comma), [])
    _check([name.strip() for name in names])
    names = [name.strip() for name in names]
    for values in csv.reader(lines, delimiter=comma, strict=True):
        if not values:
            continue
        if len(values) != len(names):
            yield None
        else:
            yield {name: value.strip() for name, value in zip(names, values, strict=True)}


def _lines(text: io.TextIOWrapper, longest: int = LINE) -> Iterator[str]:
    while line := text.readline(longest):
        if len(line) == longest:
            raise UserError(f"a line has more than {longest} characters")
        yield line


def _parquet(file: Any) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        _check(table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                yield {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _check(names: list[str]) -> None:
    if not any(names):
        raise UserError("it has no header: the first line names the columns")
    twice = {name for name in names if names.count(name) > 1} if len(names) < MOST_COLUMNS else ()
    if len(names) >= MOST_COLUMNS:
        raise UserError(f"it has {len(names)} columns, more than the {MOST_COLUMNS} allowed")
    if twice:
        raise UserError(f"its header names {min(twice)!r} twice")


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """What is wrong with a file, in one sentence that names it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not text in UTF-8") from None
    except (csv.Error, pa.ArrowInvalid, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is not readable as a table: {error}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error}") from None
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(name) else f"{name}: {text}") from None
