"""Whether structures are ones that a protein could have, and how a set compares with real ones.

Traces are (B, L, 3) CA atoms in ångström, backbones (B, L, 4, 3) N, CA, C, O. Every figure is a
plain number, over all rows together; NaN where there is nothing to measure.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ray.tasks.proteins import backbone, geometry
from aigc_ray.tasks.proteins.assignment import assign

CLASH = 3.6  # Å; CA atoms three residues apart or more are no nearer
SHORT = 3.3  # Å; a bond below is one of a cis peptide, 2.9
FIRST = 3  # residues apart, from where a contact says something of the fold
TILE = 256  # structures on each side that are compared at a time: some 50 MB

# Where real residues lie: a column is 10° of φ from -180° on, a line 10° of ψ from 180° down.
RAMACHANDRAN = (
    "#############+           +++++  +++#",
    "##############            +++  ++++#",
    "##############+           +++  +  ++",
    "###############                    +",
    "###############                    +",
    "+##############+                    ",
    "++############+                     ",
    "++###########++                     ",
    " +##########++                      ",
    " ++########++                       ",
    " ++########+          ++            ",
    "  +####+##++         +##+           ",
    "  ++######++         +###+          ",
    "  +++#####+          +####          ",
    "   +######+          +####+         ",
    "   +#######+          #####+        ",
    "   +########+         +#####++      ",
    "   +#########          +#####+      ",
    "   +#########+          #####+      ",
    "   +##########+          +###+      ",
    "   +###########          ++#++      ",
    "    +##########+          ++        ",
    "    +##########+                    ",
    "    ++#########+                    ",
    "    ++++#######+                    ",
    "     +++++####+                     ",
    "           ++                       ",
    "                                    ",
    "                                    ",
    "                        +           ",
    "                       ++           ",
    "                       ++           ",
    "       ++              +++          ",
    "+++++++++++            +++         +",
    "++##+++###++            ++++     +++",
    "############+            +++    +++#",
)


# --- geometry ---------------------------------------------------------------------------------


def raw_bond_ok(distance: Tensor, tolerance: float = 0.3) -> float:
    """Share of the distances (i, i+1) in tables (B, L, L) within 3.8 Å plus or minus .3."""
    return _share((distance.diagonal(1, -2, -1) - geometry.BOND).abs() <= tolerance)


def bond_ok(ca: Tensor, tolerance: float = 0.1) -> float:
    """Share of the CA-CA bonds within 3.8 Å plus or minus .1.

    Those of cis peptides, 2.9 Å and .2 % of real ones, count as wrong, as `recover` makes none;
    `cis_rate` has them apart.
    """
    return _share((ca.diff(dim=1).norm(dim=-1) - geometry.BOND).abs() <= tolerance)


def cis_rate(ca: Tensor) -> float:
    """Share of the CA-CA bonds below 3.3 Å."""
    return _share(ca.diff(dim=1).norm(dim=-1) < SHORT)


class Clashes(NamedTuple):
    pairs: float  # share of all pairs
    structures: float  # share of the structures with any


def clash_rate(ca: Tensor) -> Clashes:
    """CA atoms three residues apart or more that are nearer than 3.6 Å."""
    row, column = torch.triu_indices(ca.shape[1], ca.shape[1], FIRST, device=ca.device)
    clashes = geometry.distances(ca)[:, row, column] < CLASH
    return Clashes(_share(clashes), _share(clashes.any(1)))


def radius_ratio(ca: Tensor) -> float:
    """Mean radius of gyration over 2.2·L^.38 Å, that of a folded chain of L residues (Skolnick et
    al. 1997). Windows of 64 cut from larger proteins have 1.33: compare with real ones.
    """
    return float(geometry.radius_of_gyration(ca).mean() / (2.2 * ca.shape[1] ** 0.38))


# --- secondary structure ----------------------------------------------------------------------


class Handedness(NamedTuple):
    right: float  # share of the helices that are right-handed; NaN where there are none
    helices: int  # how many were found


def right_handed(ca: Tensor) -> Handedness:
    """How many helices turn the right way.

    A helix is a longest stretch of four or more consecutive runs of four residues, all of the
    same hand, with a dihedral angle within 20° of 50° or of -50°, 5.0 to 6.0 Å from first to
    third residue and 4.5 to 6.0 Å from first to fourth.
    """
    right, left = (int(_stretches(ca, hand).sum()) for hand in (1, -1))
    found = right + left
    return Handedness(right / found if found else math.nan, found)


def secondary_js(a: Tensor, b: Tensor) -> float:
    """Jensen-Shannon divergence, in bits, between two sets of traces (N, L, 3) and (M, L, 3), of
    the shares of their residues that are in a helix, in a strand and in neither.
    """
    counts = []
    for traces in (a, b):
        states = np.stack([assign(ca) for ca in traces.cpu().numpy()])
        counts.append(torch.from_numpy(np.bincount(states.ravel(), minlength=3)))
    return jensen_shannon(counts[0], counts[1])


def _stretches(ca: Tensor, hand: int) -> Tensor:
    """(B,) helices of one hand."""
    ends, thirds = (ca[:, 3:] - ca[:, :-3]).norm(dim=-1), (ca[:, 2:] - ca[:, :-2]).norm(dim=-1)
    runs = ((torch.rad2deg(geometry.dihedrals(ca)) - 50 * hand).abs() < 20) & (ends > 4.5)
    runs &= (ends < 6) & (thirds[:, :-1] > 5) & (thirds[:, :-1] < 6)
    four = runs.unfold(1, 4, 1).all(-1)
    starts = four & ~F.pad(four, (1, 0))[:, :-1]
    return starts.sum(1)


# --- backbones --------------------------------------------------------------------------------


class Ramachandran(NamedTuple):
    favoured: float
    allowed: float  # the favoured ones among them


def ramachandran_allowed(atoms: Tensor) -> Ramachandran:
    """Shares of residues whose φ and ψ lie where those of real residues do.

    Where that is was counted on the 25,267 residues of 140 X-ray chains (bound chains of Docking
    Benchmark 5, all amino acids alike, as a generated backbone has none): squares of 10°,
    smoothed by a Gaussian of 7°, the densest squares that hold 95 % of the residues favoured (24 %
    of the plane), those that hold 98 % allowed (36 %). Of glycines alone 86 % are.
    """
    grid = torch.tensor([[" +#".index(mark) for mark in line] for line in RAMACHANDRAN])
    phi, psi, _ = backbone.torsions(atoms)
    column, row = ((torch.rad2deg(angle) + 180).div(10).floor().long() % 36 for angle in (phi, psi))
    level = grid.to(atoms.device)[35 - row, column]
    return Ramachandran(_share(level == 2), _share(level >= 1))


# --- sets -------------------------------------------------------------------------------------


def contact_js(a: Tensor, b: Tensor) -> float:
    """Jensen-Shannon divergence, in bits, of how contacts spread over separations in two sets of
    tables (N, L, L) and (M, L, L), in ångström.

    For each separation s from 3 to L-1, the share of the pairs (i, i+s) of all structures that
    are nearer than 8 Å; these shares, divided by their sum, are the distribution. It tells near
    contacts from far ones, each separation alike however few pairs it has; how many contacts
    there are in all it does not tell: see `contact_count`.
    """
    first, second = (geometry.contact_probability(part).mean(0)[FIRST:] for part in (a, b))
    return jensen_shannon(first, second)


def contact_count(distance: Tensor) -> float:
    """Mean contacts a residue has three residues away or farther, in tables (B, L, L)."""
    length = distance.shape[1]
    row, column = torch.triu_indices(length, length, FIRST, device=distance.device)
    near = distance[:, row, column] < geometry.CONTACT
    return float(2 * near.float().sum(1).mean() / length)


def jensen_shannon(a: Tensor, b: Tensor) -> float:
    """In bits, of two distributions given by counts or shares; 0 if alike, 1 if disjoint."""
    p, q = (part.double() / part.double().sum() for part in (a, b))
    middle = (p + q) / 2
    both = sum(torch.xlogy(part, part / middle).nansum() for part in (p, q))
    return float(both) / (2 * math.log(2))


class Nearest(NamedTuple):
    rmsd: Tensor  # (N,) ångström
    row: Tensor  # (N,) of the other set


def nearest(ca: Tensor, training: Tensor) -> Nearest:
    """For each trace of (N, L, 3) the one of (M, L, 3) with the least RMSD, superposed.

    Never more than a tile of pairs in memory. 0 to within .001 Å for a copy.
    """
    rmsd, row = [], []
    for rows in ca.split(TILE):
        parts = [geometry.rmsd_matrix(rows, part).min(1) for part in training.split(TILE)]
        least, part = torch.stack([found.values for found in parts]).min(0)
        inside = torch.stack([found.indices for found in parts]).gather(0, part[None])[0]
        rmsd.append(least)
        row.append(inside + part * TILE)
    return Nearest(torch.cat(rmsd), torch.cat(row))


def diversity(ca: Tensor) -> float:
    """Mean RMSD in ångström over all pairs of traces, superposed."""
    count = len(ca)
    if count < 2:
        return math.nan
    total = sum(
        float(geometry.rmsd_matrix(rows, columns).sum())
        for rows in ca.split(TILE)
        for columns in ca.split(TILE)
    )
    return total / (count * (count - 1))  # a trace is 0 from itself, within .001


def _share(which: Tensor) -> float:
    return float(which.float().mean())
