"""SMILES as short rows of codes: the one alphabet of all molecules, so that any model of them can
be trained further on any others.

A code stands for a token (an atom, a bond, a bracket, the digit of a ring) or for a piece, several
tokens that often follow each other: a drug-like molecule has about a third as many codes as tokens,
and a generator says a code at a time. Pieces were
learned from the training split of MOSES (benchmarks/molecule_pieces.py, by byte-pair merges after
Sennrich et al. 2016). From the left the longest piece is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from aigc_ray.errors import UserError

END = 0  # after a molecule, and as padding
TOKENS = r"""
C c N n O o S s F Cl Br I P B p ( ) = # - / \ 1 2 3 4 5 6 7 8 9 %10 %11 %12 [H] [nH] [C@H]
[C@@H] [C@] [C@@] [C-] [CH-] [CH2-] [C+] [CH+] [c-] [cH-] [c+] [cH+] [N+] [N-] [NH+] [NH-]
[NH2+] [NH3+] [N@] [N@@] [N@+] [N@@+] [N@H+] [N@@H+] [n+] [n-] [nH+] [O-] [O+] [OH+] [o+]
[S-] [S+] [SH+] [s+] [S@] [S@@] [S@+] [S@@+] [P+] [PH] [P@] [P@@] [P-] [B-] [BH-] [BH] [Si]
[SiH] [SiH2] [Se] [se] [SeH] [Se+] [As] [As+]
"""
PIECES = r"""
cc CC c1 O) =O) C( c2 c( c1cc C(=O) C) c2cc 2) (=O) (C) NC(=O) c3 n1 F) c1ccc( CO cc1 c1cccc
C(=O)N 1CC cn c2cccc N( c1n 2CC C(C) (=O)N c2) CC1 3) O= CCC c3cc N) c1ccccc1 c(C) O=C( Cl)
CC(=O)N CN c2n CCO c1cccc( C1 S(=O) c1cc( c2ccc( CC( CC(C) C1CC n2 cs Cc1ccc( cc( nc( Cc1n
c2ccccc2 NC(=O)N 2)cc1 c1) CN( C2CC c3cccc 2)c1 Cc1cc 1) COc1ccc( c(=O) F)cc O=C(N nn C#
c2ccccc2) c3ccccc3 N1CC S(=O)(=O) CNC(=O) =O c2c( (F) OC) c(- Cn1 Cc1 cc2 C2 ccc1 n( COC(=O)
C#N) S(=O)(=O)N o1 CCCC cn1 F)(F)
"""
NAMES = ("", *TOKENS.split(), *PIECES.split())  # by code
SIZE = len(NAMES)


def tokens(smiles: str) -> list[str]:
    """Atoms, bonds, brackets and ring digits, one by one."""
    return _TOKEN.findall(smiles)


def encode(smiles: str) -> list[int]:
    """The codes of a SMILES.

    Raises:
        UserError: a token that the alphabet lacks.
    """
    try:
        return [_codes()[piece] for piece in _pattern().findall(smiles)]
    except KeyError as strange:
        raise UserError(f"{strange.args[0]} is not in the alphabet of molecules") from None


def decode(codes: Iterable[int]) -> str:
    """The SMILES of codes, up to the first `END`."""
    found = []
    for code in codes:
        if code == END:
            break
        found.append(NAMES[code])
    return "".join(found)


def effects() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each code does to what is open: by how many branches more there are, how many it closes
    of those before it, and which rings it opens or closes, a bit each; (SIZE,) int64."""
    change, closes, rings = np.zeros((3, SIZE), np.int64)
    for code, name in enumerate(NAMES):
        depth = 0
        for token in tokens(name):
            if token == "(":
                depth += 1
            elif token == ")":
                depth -= 1
                closes[code] = max(closes[code], -depth)
            elif token.lstrip("%").isdigit():
                rings[code] ^= 1 << int(token.lstrip("%"))
        change[code] = depth
    return change, closes, rings


def rows(smiles: Iterable[list[int]], length: int) -> np.ndarray:
    """(N, length) uint8: codes side by side, padded with `END`."""
    listed = list(smiles)
    found = np.zeros((len(listed), length), np.uint8)
    for row, codes in zip(found, listed, strict=True):
        row[: len(codes)] = codes
    return found


_TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|.")


@cache
def _codes() -> dict[str, int]:
    return {name: code for code, name in enumerate(NAMES) if code != END}


@cache
def _pattern() -> re.Pattern[str]:
    """The longest piece first; what ends in C or B is not the beginning of Cl or Br."""
    guards = {"C": "(?!l)", "B": "(?!r)"}
    names = sorted(NAMES[1:], key=len, reverse=True)
    known = "|".join(re.escape(name) + guards.get(name[-1], "") for name in names)
    return re.compile(f"{known}|{_TOKEN.pattern}")
