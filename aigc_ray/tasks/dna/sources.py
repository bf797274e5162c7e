"""Where sequences come from: FASTA, CSV and Parquet files, and the pieces of work in them.

A table has a column of sequences and one of classes, found by their names or named by `label`. A
record of FASTA belongs to the class that its header names as `label=NAME`, or else to that which
its file is called after. A column "split", or a file's or a folder's name, that says train, val or
test tells where sequences belong; a column "family", who may not be parted; a column "synthetic"
that says yes in any row, that the file holds sequences a program drew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from aigc_ray import storage, tables
from aigc_ray.errors import UserError
from aigc_ray.task import Source

SEQUENCES = ("sequence", "seq", "dna")
LABELS = ("label", "class", "target", "y")
FAMILIES = ("family", "group", "gene", "chromosome", "patient")
COMPUTED = ("1", "true", "yes")
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
ROWS = 5_000  # of a piece of work: each skips those before
MOST_CLASSES = 100
USUAL = 0.5  # share of rows that have the commonest length, at least, where no length is named


class Found(NamedTuple):
    """What a source holds."""

    pieces: list[Source]
    classes: tuple[str, ...]
    length: int


def survey(uri: str, length: int | None, label: str | None) -> Found:
    """Look through all rows of a source once.

    Raises:
        UserError: there is no such file, no column of sequences or of classes, or lengths differ.
    """
    pieces: list[Source] = []
    classes: set[str] = set()
    lengths: Counter[int] = Counter()
    for path in _paths(uri):
        known: Source = {"path": path, "name": storage.name(path), "label": label}
        if split := _split_of_name(path, uri):
            known["split"] = split
        count = 0
        checked = False
        for row in tables.read(path):
            count += 1
            if row is None:
                continue
            if not checked:
                _columns(row, path, label)
                checked = True
            if name := class_of(row, known):
                classes.add(name)
            if len(classes) > MOST_CLASSES:
                raise UserError(
                    f"{path} has more than {MOST_CLASSES} classes; name their column as label=NAME"
                )
            lengths[len(sequence_of(row))] += 1
            if _computed(row):
                known["synthetic"] = True
        if not count:
            raise UserError(f"{path} holds no sequences")
        for start in range(0, count, ROWS):
            pieces.append(known | {"start": start, "rows": min(ROWS, count - start)})
    if len(classes) < 2:
        raise UserError(
            f"{uri} has {'one class' if classes else 'no classes'}; two at least are needed: a "
            "column called label, a file of FASTA a class, or label=NAME in its headers"
        )
    return Found(pieces, tuple(sorted(classes)), length or _usual(lengths, uri))


def _usual(lengths: Counter[int], uri: str) -> int:
    length, count = lengths.most_common(1)[0]
    if count < USUAL * lengths.total() or not length:
        raise UserError(
            f"{uri} has sequences of {min(lengths)} to {max(lengths)} letters: say length=N, which "
            "takes the middle N letters of longer ones and sets shorter ones aside"
        )
    return length


def _paths(uri: str) -> list[str]:
    if tables.is_table(uri):
        if not storage.exists(uri):
            raise UserError(f"{uri} does not exist")
        return [uri]
    found = [storage.join(uri, name) for name in storage.files(uri) if tables.is_table(name)]
    if not found:
        ends = ", ".join(tables.ENDINGS)
        raise UserError(f"{uri} holds no sequences: files whose names end in {ends}")
    return found


def _columns(row: Mapping[str, str], path: str, label: str | None) -> None:
    """Refuse a table without the columns that are needed."""
    known = ", ".join(list(row)[:12])
    if _named(row, SEQUENCES) is None:
        wanted = " or ".join(SEQUENCES)
        raise UserError(f"{path} has no column called {wanted}; its columns are {known}")
    if path.lower().endswith(tables.FASTA) and label is None:
        return
    if _named(row, (label,) if label else LABELS) is None:
        wanted = label or " or ".join(LABELS)
        raise UserError(f"{path} has no column called {wanted}; its columns are {known}")


def _named(row: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The row's column of one of these names."""
    lower = {name.lower(): name for name in row}
    return next((lower[name.lower()] for name in names if name.lower() in lower), None)


def rows_of(source: Source) -> Iterator[Mapping[str, str] | None]:
    """The rows of a piece of work; None for what has not the form of its file."""
    start = source["start"]
    yield from islice(tables.read(source["path"]), start, start + source["rows"])


def sequence_of(row: Mapping[str, str]) -> str:
    return row[_named(row, SEQUENCES) or "sequence"]


def class_of(row: Mapping[str, str], source: Source) -> str:
    """The class that a row names, or of FASTA its file; "" where it names none."""
    label = source["label"]
    column = _named(row, (label,) if label else LABELS)
    if column is not None:
        return row[column]
    if not source["name"].lower().endswith(tables.FASTA):
        return ""
    told = re.search(r"\blabel=(\S+)", f"{row['name']} {row['description']}")
    return told[1] if told else _stem(source["name"])


def split_of(row: Mapping[str, str], source: Source) -> str | None:
    """The split that a row's own column names, or its file.

    Raises:
        UserError: it is another word.
    """
    column = _named(row, ("split",))
    text = row[column] if column else ""
    if text and text.lower() not in PARTS:
        raise UserError(f"split is train, val or test; got {text!r}")
    return PARTS.get(text.lower()) or source.get("split")


def family_of(row: Mapping[str, str]) -> str | None:
    column = _named(row, FAMILIES)
    return (row[column] or None) if column else None


def _computed(row: Mapping[str, str]) -> bool:
    column = _named(row, ("synthetic",))
    return column is not None and row[column].lower() in COMPUTED


def _words(path: str) -> list[str]:
    """The words of a file's name, and what stands between them."""
    return re.split(r"([_\-]+)", storage.name(path).partition(".")[0])


def _stem(name: str) -> str:
    """A file's name without what it says of splits."""
    return "".join(word for word in _words(name) if word.lower() not in PARTS).strip("_-")


def _split_of_name(path: str, root: str) -> str | None:
    inside = path[len(root) :].split("/")[:-1] if path.startswith(root) else []
    words = [*_words(path), *inside]
    return next((PARTS[word.lower()] for word in words if word.lower() in PARTS), None)
