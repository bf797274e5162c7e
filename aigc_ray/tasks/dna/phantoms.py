"""Sequences that are drawn, with and without the motifs of a promoter: for trials without any data,
and for tests of whether motifs that were put in are found again.

The background is a Markov chain of order 1, rich in A and T or in G and C by sequence, the same for
both classes. A promoter has a TATA box near one place, an initiator a set distance behind it, and
often a GC box before it, each drawn letter by letter. Nothing of it is from nature, where motifs
lie otherwise and most promoters have none of these.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from aigc_ray.errors import UserError
from aigc_ray.tasks.dna.metrics import MOTIFS

CLASSES = ("background", "promoter")
SHORTEST = 70  # letters that have room for all motifs
SPREAD = 2  # letters by which a TATA box stands before or behind its place
# From the beginning of a TATA box to that of an initiator: transcription starts about 30 letters
# behind the one, and at the A of the other (Haberle and Stark 2018, as for the motifs themselves).
BEHIND = 28
BEFORE = 10, 20  # letters from the beginning of a GC box to that of the TATA box
GC_BOXES = 0.6  # share of promoters that have one
KEPT = 0.95  # chance of each letter of a motif that it is one the consensus has there
# Weights of A, C, G and T after each of them (rows); C before G is rare, as in vertebrates.
_AFTER = np.array([[33, 17, 25, 25], [30, 30, 8, 32], [28, 24, 28, 20], [18, 22, 28, 32]], float)
_RICH = np.array([[1.4, 0.6, 0.6, 1.4], [0.7, 1.3, 1.3, 0.7]])  # how these weights are changed
Array = np.ndarray


def write(
    path: Path,
    *,
    train: int = 1200,
    val: int = 200,
    test: int = 300,
    length: int = 80,
    seed: int = 0,
) -> None:
    """A table of sequences, half of them promoters; its column `synthetic` says what they are."""
    if length < SHORTEST:
        raise UserError(f"length is at least {SHORTEST} letters; got {length}")
    lines = ["sequence,label,split,synthetic"]
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
        random = np.random.default_rng((seed, number))
        label = random.permutation(np.arange(count) % 2)
        for codes, which in zip(draw(label, length, random), label, strict=True):
            lines.append(f"{''.join('ACGT'[code] for code in codes)},{CLASSES[which]},{split},1")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def draw(label: Array, length: int, random: np.random.Generator) -> Array:
    """(N, length) codes from 0 on for labels (N,), 1 where a promoter is wanted."""
    found = _background(len(label), length, random)
    motif = {name: matrix(MOTIFS[name]) for name in ("tata_box", "initiator", "gc_box")}
    for row in np.flatnonzero(label):
        at = length // 2 - 12 + int(random.integers(-SPREAD, SPREAD + 1))
        _put(found[row], motif["tata_box"], at, random)
        _put(found[row], motif["initiator"], at + BEHIND, random)
        before = int(random.integers(BEFORE[0], BEFORE[1] + 1))
        if random.random() < GC_BOXES:
            _put(found[row], motif["gc_box"], at - before, random)
    return found


def matrix(consensus: str) -> Array:
    """(n, 4) the chances of A, C, G and T at each place of a motif as `MOTIFS` writes it."""
    places = [several or one for several, one in re.findall(r"\[(\w+)\]|(\w)", consensus)]
    allowed = np.array([[letter in letters for letter in "ACGT"] for letters in places])
    some = allowed.sum(1, keepdims=True)
    chance: Array = np.where(allowed, KEPT / some, (1 - KEPT) / np.maximum(4 - some, 1))
    return chance / chance.sum(1, keepdims=True)


def _background(count: int, length: int, random: np.random.Generator) -> Array:
    chance = _AFTER * _RICH[:, None]  # (2, 4, 4)
    upto = (chance / chance.sum(2, keepdims=True)).cumsum(2)
    rich = random.integers(2, size=count)
    found = np.empty((count, length), np.int64)
    found[:, 0] = random.integers(4, size=count)
    for place in range(1, length):
        # A sum may end a little below 1, and there is no fifth letter.
        above = random.random(count)[:, None] > upto[rich, found[:, place - 1], :3]
        found[:, place] = above.sum(1)
    return found


def _put(codes: Array, chance: Array, at: int, random: np.random.Generator) -> None:
    """Draw a motif over the letters that begin at a place."""
    codes[at : at + len(chance)] = [random.choice(4, p=row) for row in chance]
