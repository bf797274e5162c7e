"""Molecules as records and as tensors: what training, ingestion and serving share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from torch import Tensor

from aigc_ray.errors import UserError
from aigc_ray.schema import BYTES, Field, Schema
from aigc_ray.splitter import hash64
from aigc_ray.task import Batch, Columns, Record, Reject, Source
from aigc_ray.tasks.molecules import alphabet, chemistry, sources
from aigc_ray.tasks.molecules.chemistry import PROPERTIES, UNITS
from aigc_ray.tasks.molecules.wishes import flag

CODES, ROOTED = "codes", "rooted"  # fields: the canonical SMILES, and one begun at another atom
ENVIRONMENTS, DESCRIPTORS = "environments", "descriptors"  # what activities are recognised by


def schema(length: int, activities: Mapping[str, bool]) -> Schema:
    """The fields of molecules: their codes, properties that are computed, activities as given."""
    codes = tuple(alphabet.NAMES[1:])
    fields = [
        Field(
            name=CODES, kind="codes", parts=("generated", "input"), shape=(length,), values=codes
        ),
        Field(name=ROOTED, kind="codes", parts=(), shape=(length,), values=codes),
    ]
    fields += [
        Field(name=name, kind="number", parts=("condition",), unit=UNITS.get(name, ""))
        for name in PROPERTIES
    ]
    if activities:
        size = (chemistry.COUNTS,), (chemistry.DESCRIPTORS,)
        fields += [
            Field(name=ENVIRONMENTS, kind="counts", parts=("input",), shape=size[0]),
            Field(name=DESCRIPTORS, kind="number", parts=("input",), shape=size[1]),
        ]
    fields += [
        Field(name=name, kind="yes_no" if binary else "number", parts=("target",))
        for name, binary in activities.items()
    ]
    return Schema(tuple(fields))


def activities(schema: Schema) -> list[Field]:
    """The fields that are to be predicted."""
    return list(schema.part("target"))


# --- rows -------------------------------------------------------------------------------------


def read(source: Source, schema: Schema, split: str, computed: float) -> Iterator[Record | Reject]:
    """The molecules of a piece of a file.

    Args:
        split: how rows whose split is not given are split.
        computed: share of molecules whose properties are computed, chosen by the molecule; those of
            all that are known to be for validation or test.
    """
    rows = sources.rows_of(source["path"], source["start"], source["rows"])
    for number, row in enumerate(rows, source["start"] + 1):
        where = f"{source['name']}:{number}"
        try:
            if row is None:
                raise UserError("the row has not the form of its file")
            yield _record(row, source, schema, split, computed) | {"source": where}
        except UserError as fault:
            yield Reject(where, str(fault))


def _record(
    row: sources.Row, source: Source, schema: Schema, split: str, computed: float
) -> Record:
    molecule = _molecule(row[source["column"]], source["column"] == "structure")
    record = _coded(molecule, schema)
    for field in activities(schema):
        column = source["activities"][field.name]
        record[field.name] = _activity(row.get(column, ""), field)
    part = sources.split_of(row) or source.get("split")
    smiles = alphabet.decode(record[CODES])
    if part == "train" and "val_share" in source:
        part = "val" if hash64(f"val/{smiles}") < source["val_share"] * 2**64 else part
    share = hash64(f"computed/{smiles}") / 2**64
    if share < computed or part in ("val", "test"):
        record |= chemistry.properties(molecule)
    else:
        record |= dict.fromkeys(PROPERTIES)
    # Molecules of one scaffold stay in one split, as rows of one patient do.
    group = chemistry.scaffold(molecule) if part is None and split == "scaffold" else ""
    return record | {"split": part, "patient": group or None, "extra": None}


def _molecule(text: str, is_block: bool) -> Chem.Mol:
    if not is_block:
        return chemistry.read(text)
    with rdBase.BlockLogs():
        found = Chem.MolFromMolBlock(text)
    if found is None:
        raise UserError("its structure is none that RDKit can read")
    return chemistry.parent(found)


def described(molecule: Chem.Mol, schema: Schema) -> Record:
    """A molecule's codes and properties.

    Raises:
        UserError: it has a token that the alphabet lacks, or more codes than the schema allows.
    """
    return _coded(molecule, schema) | chemistry.properties(molecule)


def _coded(molecule: Chem.Mol, schema: Schema) -> Record:
    smiles = chemistry.smiles(molecule)
    codes = alphabet.encode(smiles)
    length = schema[CODES].shape[0]
    if len(codes) >= length:
        raise UserError(
            f"the molecule has {len(codes)} codes, and {length - 1} are allowed; raise length"
        )
    record: Record = {CODES: alphabet.rows([codes], length)[0]}
    record[ROOTED] = _rooted(molecule, smiles, length)
    if activities(schema):
        record |= seen(molecule)
    return record


def seen(molecule: Chem.Mol) -> Record:
    """What activities are recognised by."""
    return {
        ENVIRONMENTS: chemistry.counts(molecule),
        DESCRIPTORS: chemistry.descriptors(molecule),
    }


def _rooted(molecule: Chem.Mol, smiles: str, length: int) -> np.ndarray | None:
    """The SMILES that begins at another atom, chosen by the molecule itself; so a generator learns
    to go on from what does not stand at the beginning of a canonical SMILES. None if too long."""
    start = random.Random(smiles).randrange(molecule.GetNumAtoms())
    codes = alphabet.encode(Chem.MolToSmiles(molecule, rootedAtAtom=start, canonical=False))
    return alphabet.rows([codes], length)[0] if len(codes) < length else None


def _activity(text: str, field: Field) -> float | None:
    if text.lower() in sources.MISSING:
        return None
    value = sources.number(text)
    if value is None or (field.kind == "yes_no" and value not in (0.0, 1.0)):
        raise UserError(f"{field.name} is {'0 or 1' if field.kind == 'yes_no' else 'a number'}")
    return value


def parse(item: Mapping[str, Any], schema: Schema) -> Record:
    """An item of a request: `smiles`, or an upload of one molecule (SMILES, or an SDF's block)."""
    if "file" in item:
        text, is_block = _upload(item)
    else:
        given = next((v for k, v in item.items() if k.lower() in sources.SMILES), None)
        if not isinstance(given, str):
            raise UserError(f"smiles is a SMILES as a text; got {type(given).__name__}")
        text, is_block = given, False
    try:
        molecule = _molecule(text, is_block)
        record = described(molecule, schema)
    except UserError as fault:
        raise UserError(f"{item.get('filename') or 'smiles'}: {fault}") from None
    names, of = [field.name for field in activities(schema)], item.get("of")
    if of is not None and of not in names:
        raise UserError(f"of is one of the activities {', '.join(names) or '(none)'}; got {of!r}")
    # Numbers of atoms are those of the SMILES in the answer, whatever the request began with.
    molecule = chemistry.read(alphabet.decode(record[CODES]))
    return record | {"molecule": molecule, "svg": flag(item, "svg", False), "of": of}


def _upload(item: Mapping[str, Any]) -> tuple[str, bool]:
    content, name = item["file"], str(item.get("filename", "file"))
    if not isinstance(content, bytes) or len(content) > sources.BLOCK:
        raise UserError(f"{name}: a molecule has at most {sources.BLOCK >> 20} MiB")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{name} is not text in UTF-8") from None
    if "M  END" in text:
        return text, True
    return next((line.split()[0] for line in text.splitlines() if line.split()), ""), False


def encode(columns: Columns, row: Tensor, schema: Schema) -> Batch:
    """Columns as tensors; what is absent or NaN is not known."""
    value: dict[str, Tensor] = {}
    known: dict[str, Tensor] = {}
    size = len(row)
    for field in schema.fields:
        column = columns.get(field.name)
        if column is None:
            empty = torch.zeros(size, *field.shape)
            value[field.name] = empty.long() if field.kind in BYTES else empty
            known[field.name] = torch.zeros(size, dtype=torch.bool)
        elif field.kind in BYTES:
            codes = torch.from_numpy(np.array(column, np.uint8))
            value[field.name], known[field.name] = codes.long(), codes.bool().any(1)
        else:
            number = torch.from_numpy(np.array(column, np.float32))
            finite = torch.isfinite(number)
            value[field.name] = torch.where(finite, number, 0.0)
            known[field.name] = finite.flatten(1).all(1) if field.shape else finite
    return Batch(value, known, torch.ones(size), row)


def smiles_of(codes: Tensor) -> list[str]:
    """(B,) SMILES of codes (B, L)."""
    return [alphabet.decode(row) for row in codes.tolist()]


def fingerprints(codes: Tensor) -> Tensor:
    """(B, BITS) of codes (B, L); zeros where they are no molecule."""
    return torch.stack([_fingerprint(text) for text in smiles_of(codes)])


@lru_cache(maxsize=50_000)
def _fingerprint(smiles: str) -> Tensor:
    found = torch.zeros(chemistry.BITS)
    with chemistry.quiet():
        molecule = chemistry.parsed(smiles)
    if molecule is not None:
        found += torch.from_numpy(np.unpackbits(chemistry.fingerprint(molecule)))
    return found


def codes_of(smiles: Sequence[str], length: int) -> Tensor:
    """(B, L) codes of SMILES whose tokens are known and few enough."""
    return torch.from_numpy(alphabet.rows(map(alphabet.encode, smiles), length)).long()


def canonical(codes: Tensor) -> tuple[Tensor, Tensor]:
    """What said codes (B, L) come to: codes (B, L) of the canonical SMILES, and whether they are a
    molecule (B,). They stay as they are where they are none, or the canonical form has more than L
    codes or strange ones."""
    found = codes.to("cpu", copy=True)
    valid = torch.zeros(len(codes), dtype=torch.bool)
    with chemistry.quiet():
        for place, text in enumerate(smiles_of(found)):
            molecule = chemistry.parsed(text)
            if molecule is None:
                continue
            try:
                found[place] = codes_of([chemistry.smiles(molecule)], codes.shape[1])[0]
            except (UserError, ValueError):
                continue
            valid[place] = True
    return found.to(codes.device), valid.to(codes.device)
