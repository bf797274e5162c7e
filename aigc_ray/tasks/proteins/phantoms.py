"""Chains of ideal helices, strands and loops that are computed: for trials without any data.

What a chain is made of is known, since it was built so; it is folded at random, its sequence is
drawn, and it resembles no protein. They serve to show and to test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from aigc_ray.tasks.proteins import backbone

HELICAL, EXTENDED = (91.0, 50.0), (124.0, -170.0)  # degrees: angle and dihedral of CA atoms
# What chains are made of, piece after piece, over and over: H helix, E strand, L loop, with their
# residues, one more or less.
KINDS = {
    "alpha": (("H", 14), ("L", 3), ("H", 18), ("L", 4)),
    "beta": (("E", 7), ("L", 3), ("E", 9), ("L", 4)),
    "alpha and beta": (("H", 13), ("L", 3), ("E", 7), ("L", 4), ("E", 7), ("L", 3)),
    "little": (("L", 15), ("H", 6), ("L", 15), ("E", 4)),
}
NEAREST = 3.8  # angstrom that residues of a made chain which are no neighbours are kept apart
TRIED = 100, 9  # chains at a time, at least and for each that is wanted
LENGTH = 80  # residues: three windows
NOTE = ("PHANTOM COMPUTED BY AIGC_RAY, NOT A STRUCTURE THAT WAS MEASURED",)


def write(folder: Path, *, chains: int = 96, seed: int = 0) -> None:
    """So many PDB files of a chain each, of all kinds by turns, none related to another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(KINDS):
        names = range(number, chains, len(KINDS))
        if not names:
            continue
        made = windows(kind, len(names), (seed, number), LENGTH)
        draw = np.random.default_rng((seed, number, 1))
        for name, atoms in zip(names, backbone.backbone(torch.from_numpy(made)), strict=True):
            sequence = "".join(draw.choice([*backbone.NAMES], LENGTH))
            path = folder / f"phantom-{name:04}.pdb"
            path.write_text(backbone.to_pdb(atoms, sequence, NOTE))


def windows(kind: str, count: int, seed: int | tuple[int, ...] = 0, length: int = 64) -> np.ndarray:
    """(count, length, 3) chains of one of `KINDS` without clashes, the most compact of some."""
    draw = np.random.default_rng(seed)
    tried = max(TRIED[0], TRIED[1] * count)
    i, j = np.triu_indices(length, 3)
    found, size = np.empty((0, length, 3)), np.empty(0)
    while len(found) < count:
        every = [_angles(kind, length, draw) for _ in range(tried)]
        angle, turn = (np.stack(part) for part in zip(*every, strict=True))
        made = built(angle, turn)
        distance = np.linalg.norm(made[:, i] - made[:, j], axis=2)
        free = (distance >= NEAREST).all(1)
        found = np.concatenate([found, made[free]])
        size = np.append(size, distance[free].mean(1))
    best = np.argsort(size, kind="stable")[:count]
    return found[np.sort(best)]


def built(angles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """(N, n, 3) CA atoms 3.8 Å apart, with (N, n) angles and dihedrals in degrees; a chain's first
    two say nothing."""
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
