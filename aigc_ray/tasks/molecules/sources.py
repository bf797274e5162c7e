"""Where molecules come from: SMILES, CSV, Parquet and SDF files, and the pieces of work in them.

A source is a file or a folder of files of one kind: `.smi` or `.txt` (a SMILES a line, perhaps
a name behind it), `.csv` or `.parquet` (a column of SMILES, found by its name), `.sdf`; all but
Parquet perhaps compressed (.gz). Other columns that hold numbers are activities, unless
`activities` names them, as NAME or as NAME:COLUMN; of an SDF its data fields are the columns. A
column "split", or a file's name, that says train, val or test tells where its molecules belong.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from aigc_ray import storage, tables
from aigc_ray.errors import UserError
from aigc_ray.task import Source
from aigc_ray.tasks.molecules.chemistry import PROPERTIES

PLAIN = (".smi", ".smi.gz", ".smiles", ".smiles.gz", ".txt", ".txt.gz")
SDF = (".sdf", ".sdf.gz")
ENDINGS = (*PLAIN, *tables.ENDINGS, *SDF)
PIECES, FEWEST = 32, 2_000  # of a file, at most, and rows of one, at least: each skips those before
LINE, BLOCK = 1 << 16, 1 << 20  # characters of a line, and of a molecule of an SDF, at most
SMILES = ("smiles", "canonical_smiles", "isomeric_smiles", "mol", "molecule", "structure", "smi")
IDENTITY = {"id", "index", "number", "num", "row", "cid", "mol_id", "molecule_id", "unnamed: 0", ""}
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "test": "test", "testing": "test"}  # fmt: skip
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
HELD_BACK, MOST_HELD_BACK = 0.1, 15_000  # of training rows, where no split is for validation
FIELDS = 200  # of a molecule of an SDF that are read

Row = dict[str, str]  # the SMILES (or the block of an SDF) and the columns, as text


class Found(NamedTuple):
    """What a source holds."""

    pieces: list[Source]
    activities: dict[str, bool]  # name -> whether it is one of yes and no


class _Activity(NamedTuple):
    column: str
    binary: bool


def survey(uri: str, activities: tuple[str, ...] | None) -> Found:
    """Look through all rows of a source once.

    Raises:
        UserError: there is no such file, no column of SMILES, or an activity is not there.
    """
    pieces: list[Source] = []
    seen, splits = _Columns(), set()
    for path in _paths(uri):
        column, rows = None, 0
        for row in rows_of(path):
            rows += 1
            if row is None:
                continue
            if column is None:
                column = _smiles_column(row, path)
            seen.look(row)
            splits.add(_named_split(row))
        if not rows:
            raise UserError(f"{path} holds no molecules")
        size = max(FEWEST, math.ceil(rows / PIECES))
        split = _split_of_name(path)
        splits.add(split)
        for start in range(0, rows, size):
            piece: Source = {
                "path": path,
                "name": storage.name(path),
                "column": column,
                "start": start,
                "rows": min(size, rows - start),
            }
            pieces.append(piece | ({"split": split} if split else {}))
    if "train" in splits and "val" not in splits:
        # A benchmark's data often come as train and test: of the former a few choose and judge.
        share = min(HELD_BACK, MOST_HELD_BACK / sum(piece["rows"] for piece in pieces))
        pieces = [piece | {"val_share": share} for piece in pieces]
    found = seen.activities(uri, activities)
    if found:
        kinds = {name: "yes or no" if one.binary else "number" for name, one in found.items()}
        print(f"activities: {kinds}; name those you mean as activities=A,B", file=sys.stderr)
    columns = {name: one.column for name, one in found.items()}
    pieces = [piece | {"activities": columns} for piece in pieces]
    return Found(pieces, {name: one.binary for name, one in found.items()})


def _paths(uri: str) -> list[str]:
    if uri.lower().endswith(ENDINGS):
        if not storage.exists(uri):
            raise UserError(f"{uri} does not exist")
        return [uri]
    found = [
        storage.join(uri, name) for name in storage.files(uri) if name.lower().endswith(ENDINGS)
    ]
    if not found:
        raise UserError(f"{uri} holds no molecules: files whose names end in {', '.join(ENDINGS)}")
    return found


def _smiles_column(row: Row, path: str) -> str:
    lower = {name.lower(): name for name in row}
    for name in SMILES:
        if name in lower:
            return lower[name]
    known = ", ".join(list(row)[:12])
    raise UserError(f"{path} has no column called {' or '.join(SMILES)}; its columns are {known}")


def _split_of_name(path: str) -> str | None:
    stem = storage.name(path).lower().partition(".")[0]
    words = stem.replace("-", "_").split("_")
    return next((PARTS[word] for word in words if word in PARTS), None)


class _Columns:
    """What stands in the columns of a source."""

    def __init__(self) -> None:
        self.numbers: dict[str, bool] = {}  # column -> whether all its values are numbers
        self.filled: set[str] = set()
        self.more: set[str] = set()  # columns with another number than 0 and 1

    def look(self, row: Row) -> None:
        for name, text in row.items():
            if self.numbers.get(name) is False:
                continue
            if text.lower() in MISSING:
                self.numbers.setdefault(name, True)
                continue
            value = number(text)
            self.numbers[name] = value is not None
            self.filled.add(name)
            if value not in (0.0, 1.0):
                self.more.add(name)

    def activities(self, uri: str, wanted: tuple[str, ...] | None) -> dict[str, _Activity]:
        reserved = {*SMILES, *IDENTITY, "split", *PROPERTIES}
        if wanted is None:
            wanted = tuple(
                name
                for name, numeric in self.numbers.items()
                if numeric and name in self.filled and name.lower() not in reserved
            )
        found = {}
        for text in wanted:
            name, _, column = text.partition(":")
            column = column or name
            if name == "none":
                continue
            if column not in self.numbers:
                known = ", ".join(self.numbers)
                raise UserError(f"activities: {uri} has no column {column!r}; there are: {known}")
            if not self.numbers[column] or column not in self.filled:
                raise UserError(f"activities: {column} of {uri} does not hold numbers")
            if name.lower() in PROPERTIES:
                raise UserError(
                    f"activities: {name} is what a computed property is called; write "
                    f"activities=another_name:{column}"
                )
            found[name] = _Activity(column, column not in self.more)
        return found


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- rows -------------------------------------------------------------------------------------


def rows_of(path: str, start: int = 0, count: int | None = None) -> Iterator[Row | None]:
    """Rows of a file from number `start` on; None for what has not the form of its file."""
    lower = path.lower()
    if lower.endswith(SDF):
        every: Iterator[Row | None] = _sdf(path)
    elif lower.endswith(PLAIN):
        every = _plain(path)
    else:
        every = tables.read(path)
    yield from islice(every, start, None if count is None else start + count)


def _plain(path: str) -> Iterator[Row | None]:
    """SMILES and name, a molecule a line."""
    for line in tables.lines(path, LINE):
        words = line.split()
        if words and not line.startswith("#"):
            yield {"smiles": words[0]}


def _sdf(path: str) -> Iterator[Row | None]:
    """Blocks of atoms and bonds with their data fields, a molecule each."""
    block: list[str] = []
    size = 0
    for line in tables.lines(path, LINE):
        text = line.rstrip("\r\n")
        if text.startswith("$$$$"):
            yield _fields(block) if size < BLOCK else None
            block, size = [], 0
            continue
        size += len(line)
        if size < BLOCK:  # of one that is too large nothing more is held
            block.append(text)
    if any(line.strip() for line in block):
        yield _fields(block) if size < BLOCK else None


def _fields(block: list[str]) -> Row:
    """The structure under "structure", and the data fields by their names (CTfile formats)."""
    ends = [place for place, line in enumerate(block) if line.startswith("M  END")]
    end = ends[0] + 1 if ends else len(block)
    row: dict[str, str] = {"structure": "\n".join(block[:end])}
    name: str | None = None
    for line in block[end:]:
        if line.startswith(">"):
            first, last = line.find("<"), line.rfind(">")
            name = line[first + 1 : last] if 0 < first < last else None
        elif name and line.strip() and len(row) < FIELDS:
            row[name] = line.strip()
            name = None
    return row


def split_of(row: Mapping[str, str]) -> str | None:
    """The split that a row's own column names.

    Raises:
        UserError: it is another word.
    """
    text = next((value for name, value in row.items() if name.lower() == "split"), "")
    if text and text.lower() not in PARTS:
        raise UserError(f"split is train, val or test; got {text!r}")
    return PARTS.get(text.lower())


def _named_split(row: Mapping[str, str]) -> str | None:
    try:
        return split_of(row)
    except UserError:  # its row is set aside, and told, when it is read
        return None
