"""Secondary structure from CA atoms alone, by the criteria of P-SEA.

Labesse, Colloc'h, Pothier, Mornon: P-SEA: a new efficient assignment of secondary structure from
Cα trace of proteins. CABIOS 13:291-295, 1997. The thresholds are the published ones; how stretches
grow, and what a short strand's neighbour is, are written down here as they are done here.
"""

from __future__ import annotations

import numpy as np

OTHER, HELIX, STRAND = 0, 1, 2

# (middle, tolerance) of CA i-1 to i+1, i+2 and i+3 in angstrom; of the angle at i and the dihedral
# of i-1 to i+2 in degrees.
_HELIX = {"d2": (5.5, 0.5), "d3": (5.3, 0.5), "d4": (6.4, 0.6), "angle": (89, 12), "turn": (50, 20)}
_STRAND = {
    "d2": (6.7, 0.6), "d3": (9.9, 0.9), "d4": (12.4, 1.1), "angle": (124, 14), "turn": (-170, 45),
}  # fmt: skip
_SHORTEST_HELIX, _SHORTEST_STRAND = 5, 3  # residues
_ALONE = 5  # residues of a strand that needs no neighbour
_NEIGHBOUR = (4.2, 5.2)  # angstrom between CA of neighbouring strands
_APART = 4  # residues between which a neighbour is looked for, at least

# Nakashima, Nishikawa, Ooi: the folding type of a protein is relevant to the amino acid
# composition. J Biochem 99:153-162, 1986.
_MUCH_HELIX, _MUCH_STRAND = 0.15, 0.10  # shares of the residues


def assign(ca: np.ndarray) -> np.ndarray:
    """The state of each residue of a stretch without a break: 0 other, 1 helix, 2 strand.

    A residue is a candidate of a kind if its distances, or its angle and dihedral, are the kind's
    (helix: d3 and d4 suffice). Five candidates in a row are a helix, which grows by a residue at
    each end that has the helix's d3 or angle. Three in a row are a strand if they are five, or one
    of them is 4.2 to 5.2 Å from a candidate elsewhere. Where both fit, it is a helix.

    Args:
        ca: (n, 3) in angstrom.

    Returns:
        (n,) int8.
    """
    states = np.full(len(ca), OTHER, np.int8)
    if len(ca) < _SHORTEST_HELIX:
        return states
    measures = _measures(np.asarray(ca, np.float64))
    helical = _fits(measures, _HELIX)
    bent = helical["angle"] & helical["turn"]
    helix = _grown(
        _stretches((helical["d3"] & helical["d4"]) | bent, _SHORTEST_HELIX),
        helical["d3"] | helical["angle"],
    )
    flat = _fits(measures, _STRAND)
    candidate = (flat["d2"] & flat["d3"] & flat["d4"]) | (flat["angle"] & flat["turn"])
    candidate &= ~helix
    states[_strands(ca, candidate)] = STRAND
    states[helix] = HELIX
    return states


def fold_class(assignment: np.ndarray) -> str:
    """What a stretch is mostly made of, by Nakashima's shares: 15 % helix, 10 % strand.

    Theirs are of whole proteins; of 64 residues they are ten of a helix, which is three turns, and
    seven of strands, which is a hairpin.
    """
    helix = np.mean(assignment == HELIX) >= _MUCH_HELIX
    strand = np.mean(assignment == STRAND) >= _MUCH_STRAND
    if helix:
        return "alpha and beta" if strand else "alpha"
    return "beta" if strand else "little"


def _measures(ca: np.ndarray) -> dict[str, np.ndarray]:
    """(n,) each, of the residues from i - 1 on; NaN where the stretch ends before."""
    step = np.diff(ca, axis=0)
    normal = np.cross(step[:-1], step[1:])
    across = np.cross(normal[:-1], normal[1:])
    length = np.linalg.norm(step, axis=1)
    cosine = -np.sum(step[:-1] * step[1:], 1) / np.maximum(length[:-1] * length[1:], 1e-9)
    turn = np.arctan2(
        np.sum(across * step[1:-1], 1) / np.maximum(length[1:-1], 1e-9),
        np.sum(normal[:-1] * normal[1:], 1),
    )
    values = {f"d{k}": np.linalg.norm(ca[k:] - ca[:-k], axis=1) for k in (2, 3, 4)}
    values["angle"] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    values["turn"] = np.degrees(turn)
    found = {}
    for name, value in values.items():
        found[name] = np.full(len(ca), np.nan)
        found[name][1 : 1 + len(value)] = value
    return found


def _fits(
    measures: dict[str, np.ndarray], ideal: dict[str, tuple[float, float]]
) -> dict[str, np.ndarray]:
    """(n,) bool each: whether a measure is within its tolerance; False where it is NaN."""
    found = {}
    for name, (middle, tolerance) in ideal.items():
        away = measures[name] - middle
        if name == "turn":  # -190 degrees are 170
            away = (away + 180) % 360 - 180
        found[name] = np.abs(away) <= tolerance
    return found


def _edges(mask: np.ndarray) -> np.ndarray:
    """(stretches, 2): where the stretches of True start, and where they have ended."""
    change = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(change == 1), np.flatnonzero(change == -1)], axis=1)


def _stretches(mask: np.ndarray, shortest: int) -> np.ndarray:
    """(n,) bool: the stretches of True that are at least so long."""
    found = np.zeros_like(mask)
    for start, end in _edges(mask):
        found[start:end] = end - start >= shortest
    return found


def _grown(mask: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(n,) bool: stretches with a residue more at either end where it is allowed."""
    beside = np.append(mask[1:], False) | np.append(False, mask[:-1])
    return mask | (beside & allowed)


def _strands(ca: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """(n,) bool: stretches that are long, or lie beside another candidate."""
    found = np.zeros_like(candidate)
    others = np.flatnonzero(candidate)
    for start, end in _edges(_stretches(candidate, _SHORTEST_STRAND)):
        far = others[(others < start - _APART) | (others >= end + _APART)]
        distance = np.linalg.norm(ca[start:end, None] - ca[far], axis=-1)
        near = (distance >= _NEIGHBOUR[0]) & (distance <= _NEIGHBOUR[1])
        found[start:end] = end - start >= _ALONE or near.any()
    return found
