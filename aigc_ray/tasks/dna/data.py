"""Sequences as records and as tensors: what ingestion, training and serving share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.tables import LETTERS as MOST
from aigc_ray.task import Batch, Columns, Record, Reject, Source
from aigc_ray.tasks.dna import sources

SEQUENCE, LABEL = "sequence", "label"
LETTERS = "ACGT"
# IUPAC's letters for one of several bases: what each may be (Cornish-Bowden 1985).
_SEVERAL = "R=AG Y=CT S=CG W=AT K=GT M=AC B=CGT D=AGT H=ACT V=ACG N=ACGT"
IUPAC = {letter: letter for letter in LETTERS}
IUPAC |= {pair[0]: pair[2:] for pair in _SEVERAL.split()}
UNKNOWN = 0.1  # share of a sequence's letters that may be one of several, at most
SHORTEST, LONGEST = 16, 2_000  # letters that a model can be made for
_CODES = np.zeros(256, np.uint8)
_CODES[list(LETTERS.encode())] = range(1, 5)
_OTHERS = re.compile(f"[^{''.join(IUPAC)}]")


def schema(length: int, classes: tuple[str, ...]) -> Schema:
    """The fields of sequences of `length` letters."""
    return Schema(
        (
            Field(
                name=SEQUENCE,
                kind="codes",
                parts=("generated", "input"),
                shape=(length,),
                values=tuple(LETTERS),
            ),
            Field(name=LABEL, kind="category", parts=("condition", "target"), values=classes),
        )
    )


def read(source: Source, schema: Schema, *, cut: bool) -> Iterator[Record | Reject]:
    """The sequences of a piece of a file.

    Args:
        cut: whether of longer sequences the middle is taken.
    """
    for number, row in enumerate(sources.rows_of(source), source["start"] + 1):
        where = f"{source['name']}:{number}"
        try:
            if row is None:
                raise UserError("the row has not the form of its file")
            yield _record(row, source, schema, cut) | {"source": where}
        except UserError as fault:
            yield Reject(where, str(fault))


def _record(row: Mapping[str, str], source: Source, schema: Schema, cut: bool) -> Record:
    codes = coded(sources.sequence_of(row), schema[SEQUENCE].shape[0], cut=cut)
    name = sources.class_of(row, source)
    if not name:
        raise UserError("label is empty; every sequence needs a class")
    # A sequence and its other strand are the same molecule, and may not lie in two splits.
    other = np.where(codes > 0, 5 - codes, codes)[::-1]
    return {
        SEQUENCE: codes,
        LABEL: schema[LABEL].index(name),
        "split": sources.split_of(row, source),
        "patient": sources.family_of(row),
        "same": min(codes.tobytes(), other.tobytes()),
        "extra": None,
    }


def coded(text: str, length: int, *, cut: bool = False) -> np.ndarray:
    """(L,) uint8 codes of a sequence, of lower or upper case; letters for several bases are 0.

    Raises:
        UserError: it is empty, has another length, strange letters, or too many of several bases.
    """
    text = "".join(text.split()).upper()
    if not text:
        raise UserError("sequence is empty")
    if cut and length < len(text) < MOST:
        start = (len(text) - length) // 2
        text = text[start : start + length]
    if len(text) != length:
        raise UserError(f"sequence has {_count(text)} letters; {length} are read")
    strange = _OTHERS.search(text)
    if strange:
        hint = "; RNA is not read, write T for U" if strange[0] == "U" else ""
        raise UserError(
            f"sequence has {strange[0]!r} at position {strange.start() + 1}; letters of DNA are "
            f"A, C, G, T and N{hint}"
        )
    codes: np.ndarray = _CODES[np.frombuffer(text.encode(), np.uint8)]
    unknown, most = int((codes == 0).sum()), int(UNKNOWN * length)
    if unknown > most:
        raise UserError(
            f"sequence has {unknown} letters that stand for several bases; of {length} at most "
            f"{most} are read"
        )
    return codes


def _count(text: str) -> str:
    return f"{MOST} or more" if len(text) >= MOST else str(len(text))


def parse(item: Mapping[str, Any], schema: Schema) -> Record:
    """A sequence of a request, under "sequence".

    Raises:
        UserError: there is none, or it is not one of the model's length.
    """
    if "file" in item:
        name = item.get("filename", "file")
        raise UserError(f"{name}: sequences are read from .fa, .fasta and .csv files")
    lower = {str(key).lower(): value for key, value in item.items()}
    text = next((lower[name] for name in sources.SEQUENCES if name in lower), None)
    if not isinstance(text, str):
        raise UserError(f"sequence is a text of letters A, C, G and T; got {type(text).__name__}")
    codes = coded(text, schema[SEQUENCE].shape[0])
    record: Record = {SEQUENCE: codes, "name": item.get("name")}
    if unknown := int((codes == 0).sum()):
        record["warnings"] = [f"{unknown} letters are not known"]
    return record


def encode(columns: Columns, row: Tensor, schema: Schema) -> Batch:
    """Columns as tensors; a label that is absent or below 0 is not known."""
    size, length = len(row), schema[SEQUENCE].shape[0]
    codes = columns.get(SEQUENCE)
    label = columns.get(LABEL)
    value = {
        SEQUENCE: torch.zeros(size, length, dtype=torch.int64)
        if codes is None
        else torch.from_numpy(np.array(codes, np.uint8)).long(),
        LABEL: torch.full((size,), -1)
        if label is None
        else torch.from_numpy(np.array(label, np.int64)),
    }
    known = {SEQUENCE: torch.full((size,), codes is not None), LABEL: value[LABEL] >= 0}
    value[LABEL] = value[LABEL].clamp(min=0)
    return Batch(value, known, torch.ones(size), row)


def text_of(codes: Tensor) -> str:
    """The letters of codes (L,); N where one is not known."""
    return "".join("NACGT"[code] for code in codes.tolist())
