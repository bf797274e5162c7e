"""How like real sequences generated ones are: words, composition, motifs, where these stand and how
far apart, all against what two sets of real ones differ by."""

from __future__ import annotations

import re

import numpy as np

WORDS = (3, 4, 5, 6)
# Core promoter elements as consensus in IUPAC's letters (Haberle and Stark 2018, "Eukaryotic core
# promoters and the functional basis of transcription initiation", and for CAAT and GC boxes Bucher
# 1990), written out: W is A or T, Y is C or T, R is A or G, S is C or G.
MOTIFS = {
    "tata_box": "TATA[AT]A[AT]",
    "initiator": "[CT][CT]A[ACGT][AT][CT][CT]",
    "caat_box": "CCAAT",
    "gc_box": "GGGCGG",
    "bre": "[CG][CG][AG]CGCC",
    "kozak": "[AG]CCATGG",
}
BINS = 10  # of the positions in a sequence, and of distances
FURTHEST = 50  # letters between two motifs


def spectrum(codes: np.ndarray, order: int) -> np.ndarray:
    """(4**order,) shares of words in codes (N, L); those with an unknown letter are left out."""
    letters = codes.astype(np.int64) - 1
    width = codes.shape[1] - order + 1
    number = np.zeros((len(codes), width), np.int64)
    known = np.ones((len(codes), width), bool)
    for place in range(order):
        part = letters[:, place : place + width]
        number, known = number * 4 + part, known & (part >= 0)
    counts = np.bincount(number[known], minlength=4**order).astype(float)
    return counts / max(1.0, counts.sum())


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions, in bits (Lin 1991); 1 where one is empty."""
    if not p.sum() or not q.sum():
        return 1.0 if p.sum() != q.sum() else 0.0
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def from_middle(part: np.ndarray) -> float:
        there = part > 0
        return float((part[there] * np.log2(part[there] / middle[there])).sum())

    return (from_middle(p) + from_middle(q)) / 2


def word_divergences(a: np.ndarray, b: np.ndarray) -> dict[int, float]:
    """By the length of the words."""
    return {order: divergence(spectrum(a, order), spectrum(b, order)) for order in WORDS}


def composition(codes: np.ndarray) -> np.ndarray:
    """(N,) the share of G and C in each sequence."""
    return ((codes == 2) | (codes == 3)).mean(1)


def letters_by_place(codes: np.ndarray) -> np.ndarray:
    """(L, 4) the share of each letter at each position."""
    counts = np.stack([(codes == letter).sum(0) for letter in range(1, 5)], 1).astype(float)
    return counts / np.maximum(1, counts.sum(1, keepdims=True))


def places(codes: np.ndarray) -> dict[str, list[list[int]]]:
    """Where each motif begins in each sequence (N lists)."""
    texts = ["".join("NACGT"[code] for code in row) for row in codes.tolist()]
    found = {}
    for name, pattern in MOTIFS.items():
        ahead = re.compile(f"(?={pattern})")  # so that occurrences may overlap
        found[name] = [[at.start() for at in ahead.finditer(text)] for text in texts]
    return found


def motif_statistics(codes: np.ndarray) -> dict[str, np.ndarray]:
    """Counts of each motif by position, and of pairs of motifs by the distance between them."""
    at, length = places(codes), codes.shape[1]
    found: dict[str, np.ndarray] = {}
    for name, rows in at.items():
        every = np.array([place for row in rows for place in row])
        found[f"{name} by position"] = np.histogram(every, BINS, (0, length))[0].astype(float)
    furthest = min(FURTHEST, length)
    for one in MOTIFS:
        for other in MOTIFS:
            if one > other:
                continue
            gaps = [
                b - a
                for first, second in zip(at[one], at[other], strict=True)
                for a in first
                for b in second
                if (a < b if one == other else a != b)
            ]
            near = np.array([gap for gap in gaps if abs(gap) <= furthest])
            counts = np.histogram(near, BINS, (-furthest, furthest))[0].astype(float)
            found[f"{one} to {other}"] = counts
    return found


def motif_divergences(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean Jensen-Shannon divergence, in bits, of where motifs stand and of how far apart; those
    that are rare among `b` (fewer than 50) are left out. NaN where all are."""
    one, other = motif_statistics(a), motif_statistics(b)
    by: dict[bool, list[float]] = {True: [], False: []}
    for name, counts in other.items():
        if counts.sum() >= 50:
            by[name.endswith("by position")].append(divergence(one[name], counts))
    return tuple(float(np.mean(by[kind])) if by[kind] else float("nan") for kind in (True, False))  # type: ignore[return-value]


def copies(codes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the share of letters by which each sequence differs from the nearest of `known` (M, L),
    on either strand, and whether it is one of them."""
    other = np.where(known > 0, 5 - known, known)[:, ::-1]
    every = np.concatenate([_hot(known), _hot(other)])
    found = np.empty(len(codes))
    for start in range(0, len(codes), 256):
        alike = _hot(codes[start : start + 256]) @ every.T
        found[start : start + 256] = 1 - alike.max(1) / codes.shape[1]
    return found, found < 0.5 / codes.shape[1]


def _hot(codes: np.ndarray) -> np.ndarray:
    hot = codes[:, :, None] == np.arange(1, 5)
    return hot.reshape(len(codes), -1).astype(np.float32)
