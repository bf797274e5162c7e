"""Small real molecules, put together of pieces, for tests that must train in seconds."""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path

from rdkit import Chem

HEADS = ("C", "CC", "CCC", "CC(C)", "CO", "CCO", "CN", "CCN", "F", "Cl", "N", "O", "CSC", "N#C")
CORES = (
    "{}c1ccc({})cc1", "{}c1cccc({})c1", "{}C1CCC({})CC1", "{}C(=O)N{}", "{}c1ccc({})nc1",
    "{}C1CCN({})CC1", "{}c1ccc({})s1", "{}NC(=O)C{}",
)  # fmt: skip
TAILS = ("C", "CC", "CCC", "C(C)C", "OC", "CO", "CCO", "CF", "CCl", "CN", "CC#N", "CC(=O)O", "CSC")


def smiles(count: int, seed: int = 0) -> list[str]:
    """So many different ones, the same for the same seed."""
    return random.Random(seed).sample(_every(), count)


@cache
def _every() -> list[str]:
    """Canonical SMILES, since a molecule may be put together in two ways."""
    texts = [core.format(a, b) for core, a, b in itertools.product(CORES, HEADS, TAILS)]
    return sorted({Chem.CanonSmiles(text) for text in texts})


def write(path: Path, count: int, seed: int = 0) -> None:
    """A table with two activities: whether there is a nitrogen, and how many carbons there are."""
    lines = ["smiles,nitrogen,carbons"]
    for number, text in enumerate(smiles(count, seed)):
        carbons = (
            "" if number % 7 == 0 else str(text.count("C") + text.count("c") - text.count("Cl"))
        )
        lines.append(f"{text},{int('N' in text or 'n' in text)},{carbons}")
    path.write_text("\n".join(lines) + "\n")
