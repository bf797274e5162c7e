"""Small protein chains of ideal helices and strands, and the PDB and mmCIF files they come in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from aigc_ray.tasks.proteins.phantoms import (  # noqa: F401  some for those who import this
    EXTENDED,
    HELICAL,
    KINDS,
    built,
    windows,
)

NAMES = ("ALA", "LEU", "LYS", "GLU", "SER", "VAL", "THR")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
Records = Sequence[str]  # the lines of one residue


# --- traces -----------------------------------------------------------------------------------


def trace(angles: Sequence[float] | np.ndarray, turns: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, 3) CA atoms 3.8 Å apart, with an angle and a dihedral a residue in degrees."""
    return built(np.array([angles]), np.array([turns]))[0]


def ideal(kind: tuple[float, float], count: int) -> np.ndarray:
    return trace(np.full(count, kind[0]), np.full(count, kind[1]))


def letters(count: int, seed: int) -> str:
    """A random sequence; two of different seeds are no relatives."""
    return "".join(random.Random(seed).choices(LETTERS, k=count))


# --- files ------------------------------------------------------------------------------------


def record(
    name: str,
    residue: str,
    chain: str,
    number: int,
    at: Sequence[float] | np.ndarray,
    *,
    alt: str = " ",
    insertion: str = " ",
    kind: str = "ATOM",
    share: float = 1.0,
) -> str:
    """A line of a PDB file; CAL is a calcium ion's atom."""
    x, y, z = at
    field = f" {name:<3}" if name != "CAL" else "CA  "
    return (
        f"{kind:<6}    1 {field}{alt}{residue:>3} {chain}{number:>4}{insertion}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{share:6.2f}  0.00          {name[0]:>2}"
    )


def residue(
    ca: np.ndarray,
    place: int,
    name: str = "ALA",
    chain: str = "A",
    number: int | None = None,
    **more: Any,
) -> list[str]:
    """The four records of one residue, its N and C on the lines to its neighbours."""
    ahead = ca[place + 1] - ca[place] if place + 1 < len(ca) else ca[place] - ca[place - 1]
    behind = ca[place - 1] - ca[place] if place else -ahead
    along = {"N": 1.2 * behind / 3.8, "CA": 0 * ahead, "C": 1.2 * ahead / 3.8}
    along["O"] = along["C"] + np.array([0, 0, 1.2])
    number = place + 1 if number is None else number
    return [record(a, name, chain, number, ca[place] + step, **more) for a, step in along.items()]


def blocks(
    count: int = 70, chain: str = "A", kind: tuple[float, float] = HELICAL, away: float = 0.0
) -> list[list[str]]:
    """The records of an ideal chain, residue by residue."""
    ca = ideal(kind, count) + away
    return [residue(ca, i, NAMES[i * i % 7], chain) for i in range(count)]


def chain(ca: np.ndarray, sequence: str, name: str = "A") -> list[list[str]]:
    """The records of a chain with this sequence, residue by residue."""
    names = gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)
    return [residue(ca, place, one, name) for place, one in enumerate(names)]


def text(*parts: Iterable[Records]) -> bytes:
    """A PDB file of residues' records."""
    lines = [line for part in parts for records in part for line in records]
    return "\n".join([*lines, "END", ""]).encode()


def cif(pdb: bytes) -> bytes:
    """The same as mmCIF."""
    structure = gemmi.read_pdb_string(pdb)
    structure.setup_entities()
    return structure.make_mmcif_document().as_string().encode()


def nucleic() -> bytes:
    """A file of nucleic acids only."""
    return text([[record("P", " DA", "D", i, (i, 70, 0))] for i in range(1, 80)])


def one(number: int, seed: int = 0) -> bytes:
    """The PDB file of one chain of 80 to 110 residues, each number another kind and sequence."""
    kind = [*KINDS][number % len(KINDS)]
    count = 80 + 10 * (number // len(KINDS) % 4)
    (ca,) = windows(kind, 1, 100 * seed + number, count)
    return text(chain(ca, letters(count, 100 * seed + number)))


def write(folder: Path, count: int = 16, seed: int = 0) -> str:
    """So many files in a folder, each of a family of its own, every fifth one as mmCIF."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        content, name = one(number, seed), f"1p{number:02}"
        if number % 5 == 4:
            (folder / f"{name}.cif").write_bytes(cif(content))
        else:
            (folder / f"{name}.pdb").write_bytes(content)
    return str(folder)
