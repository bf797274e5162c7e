"""Which pieces of SMILES are worth a code of their own: byte-pair merges of MOSES' molecules.

    python -m benchmarks.molecule_pieces MOSES_TRAIN.csv.gz [PIECES]

prints `PIECES` of `aigc_ray/tasks/molecules/alphabet.py`. The pair of codes that occurs most often
becomes a piece, again and again (Sennrich et al. 2016, "Neural machine translation of rare words
with subword units"); a piece that is all of another's occurrences stays, since it costs one code.
"""

from __future__ import annotations

import random
import sys
import textwrap

import numpy as np

from aigc_ray import tables
from aigc_ray.tasks.molecules.alphabet import TOKENS, tokens

MOLECULES = 200_000


def merged(flat: np.ndarray, first: int, second: int, code: int) -> np.ndarray:
    """`flat` with the pair (first, second) as `code`, from the left."""
    places = np.flatnonzero((flat[:-1] == first) & (flat[1:] == second))
    if first == second and len(places):  # of "ccc" only the first two
        start = np.r_[True, np.diff(places) > 1]
        run = np.maximum.accumulate(np.where(start, places, 0))
        places = places[(places - run) % 2 == 0]
    flat = flat.copy()
    flat[places] = code
    return np.delete(flat, places + 1)


def main(path: str, pieces: int = 100) -> None:
    rows = [row["SMILES"] for row in tables.read(path) if row is not None]
    rows = random.Random(0).sample(rows, MOLECULES)
    names = ["", *TOKENS.split()]
    base = len(names)
    code = {name: number for number, name in enumerate(names)}
    flat = np.array([number for row in rows for number in (*map(code.__getitem__, tokens(row)), 0)])
    size = base + pieces
    while len(names) < size:
        inside = (flat[:-1] > 0) & (flat[1:] > 0)
        pairs = (flat[:-1] * size + flat[1:])[inside]
        first, second = divmod(int(np.bincount(pairs).argmax()), size)
        flat = merged(flat, first, second, len(names))
        names.append(names[first] + names[second])
    text = " ".join(names[base:])
    print("\n".join(textwrap.wrap(text, 92, break_long_words=False, break_on_hyphens=False)))
    print(f"{len(flat) / len(rows):.2f} codes a molecule, its end included", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
