"""Small protein chains of ideal helices and strands, and the PDB and mmCIF files they come in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

HELICAL, EXTENDED = (91.0, 50.0), (124.0, -170.0)  # degrees: angle and dihedral of CA atoms
NAMES = ("ALA", "LEU", "LYS", "GLU", "SER", "VAL", "THR")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
# What chains are made of, piece after piece, over and over: H helix, E strand, L loop, with their
# residues, one more or less.
KINDS = {
    "alpha": (("H", 14), ("L", 3), ("H", 18), ("L", 4)),
    "beta": (("E", 7), ("L", 3), ("E", 9), ("L", 4)),
    "alpha and beta": (("H", 13), ("L", 3), ("E", 7), ("L", 4), ("E", 7), ("L", 3)),
    "little": (("L", 15), ("H", 6), ("L", 15), ("E", 4)),
}
NEAREST = 3.8  # angstrom that residues of a made chain which are no neighbours are kept apart
TRIED = 100, 9  # chains, at least and for each that is wanted

Records = Sequence[str]  # the lines of one residue


# --- traces -----------------------------------------------------------------------------------


def trace(angles: Sequence[float] | np.ndarray, turns: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, 3) CA atoms 3.8 Å apart, with an angle and a dihedral a residue in degrees."""
    return _built(np.array([angles]), np.array([turns]))[0]


def _built(angles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """(N, n, 3) of (N, n) angles and dihedrals; a chain's first two say nothing."""
    points = np.zeros((*angles.shape, 3))
    points[:, 1, 0] = 3.8
    before = np.array([[0, 1.0, 0]])  # what the first dihedral is measured from
    angles, turns = np.radians(angles)[..., None], np.radians(turns)[..., None]
    for i in range(2, angles.shape[1]):
        along = (points[:, i - 1] - points[:, i - 2]) / 3.8
        normal = np.cross(before, along)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        turned = np.cos(turns[:, i]) * np.cross(normal, along) + np.sin(turns[:, i]) * normal
        step = np.sin(angles[:, i]) * turned - np.cos(angles[:, i]) * along
        points[:, i] = points[:, i - 1] + 3.8 * step
        before = along
    return points


def ideal(kind: tuple[float, float], count: int) -> np.ndarray:
    return trace(np.full(count, kind[0]), np.full(count, kind[1]))


def windows(kind: str, count: int, seed: int = 0, length: int = 64) -> np.ndarray:
    """(count, length, 3) chains of one of `KINDS` without clashes, the most compact of some."""
    draw = np.random.default_rng(seed)
    angle, turn = (
        np.stack(part)
        for part in zip(
            *(_angles(kind, length, draw) for _ in range(max(TRIED[0], TRIED[1] * count))),
            strict=True,
        )
    )
    made = _built(angle, turn)
    i, j = np.triu_indices(length, 3)
    distance = np.linalg.norm(made[:, i] - made[:, j], axis=2)
    clashes = (distance < NEAREST).any(1)
    best = np.lexsort([distance.mean(1), clashes])[:count]
    assert not clashes[best].any()
    return made[np.sort(best)]


def _angles(kind: str, length: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    pieces = KINDS[kind]
    angle: list[float] = []
    turn: list[float] = []
    number = int(draw.integers(len(pieces)))
    while len(angle) < length:
        what, count = pieces[number % len(pieces)]
        count += int(draw.integers(-1, 2))
        if what == "L":
            angle += [*draw.uniform(95, 140, count)]
            turn += [*draw.uniform(-180, 180, count)]
        else:
            middle, spread = (HELICAL, (2, 4)) if what == "H" else (EXTENDED, (5, 12))
            angle += [*draw.normal(middle[0], spread[0], count)]
            turn += [*draw.normal(middle[1], spread[1], count)]
        number += 1
    return np.array(angle[:length]), np.array(turn[:length])


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
