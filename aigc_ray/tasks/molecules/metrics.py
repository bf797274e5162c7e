"""How generated molecules compare with real ones: the measures of MOSES (Polykovskiy et al. 2020,
Front Pharmacol 11:565644), written anew over RDKit, and the Fréchet distance of any features.

Molecules are SMILES; what is none counts as invalid and is left out of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy import linalg, stats

from aigc_ray import calibration, recognition
from aigc_ray.schema import Field
from aigc_ray.tasks.molecules import chemistry
from aigc_ray.tasks.molecules.chemistry import PROPERTIES

FEWEST_RINGS = 2  # of a scaffold that counts
COMPARED = (
    "valid", "unique", "filters", "diversity", "fragments", "scaffolds",
    *(f"{name}_distance" for name in PROPERTIES),
)  # fmt: skip
ROWS = 1024  # fingerprints that are compared with all others at a time


def molecules(smiles: Sequence[str]) -> list[Chem.Mol]:
    """Those that are any."""
    with chemistry.quiet():
        found = [chemistry.parsed(text) for text in smiles]
    return [molecule for molecule in found if molecule is not None]


def compared(real: Sequence[str], fake: Sequence[str]) -> dict[str, float]:
    """Shares of valid, unique and filtered molecules, the diversity among them, the likeness of
    their fragments and scaffolds to real ones', and how far properties are apart (Wasserstein's
    distance, in their spread among real ones)."""
    there, made = ([one for one in map(_facts, part) if one is not None] for part in (real, fake))
    valid = len(made) / max(1, len(fake))
    if len(made) < 2 or len(there) < 2:
        return dict.fromkeys(COMPARED, float("nan")) | {"valid": valid}
    found = {
        "valid": valid,
        "unique": len({one.smiles for one in made}) / len(made),
        "filters": float(np.mean([one.passes for one in made])),
        "diversity": diversity(np.stack([one.bits for one in made])),
    }
    for name in ("fragments", "scaffolds"):
        counts = [Counter(p for one in part for p in getattr(one, name)) for part in (there, made)]
        found[name] = cosine(*counts)
    for name in PROPERTIES:
        column, other = (np.array([one.properties[name] for one in p]) for p in (there, made))
        spread = max(float(column.std()), 1e-6)
        found[f"{name}_distance"] = stats.wasserstein_distance(column, other) / spread
    return {name: float(value) for name, value in found.items()}


class _Facts(NamedTuple):
    smiles: str
    passes: bool
    bits: np.ndarray
    fragments: list[str]
    scaffolds: list[str]
    properties: dict[str, float]


@lru_cache(maxsize=10_000)
def _facts(text: str) -> _Facts | None:
    """What `compared` looks at; real molecules are compared with more than once."""
    made = molecules([text])
    if not made:
        return None
    (one,) = made
    return _Facts(
        chemistry.smiles(one),
        chemistry.passes(one, ("moses",)),
        fingerprints(made)[0],
        fragments(one),
        scaffolds(one),
        chemistry.properties(one),
    )


def passing(made: Sequence[Chem.Mol]) -> float:
    """The share that passes the filters of MOSES."""
    return float(np.mean([chemistry.passes(one, ("moses",)) for one in made]))


def fingerprints(made: Sequence[Chem.Mol]) -> np.ndarray:
    """(N, BITS) float32 of 0 and 1."""
    return np.unpackbits(np.stack([chemistry.fingerprint(one) for one in made]), axis=1).astype(
        np.float32
    )


def diversity(bits: np.ndarray) -> float:
    """One minus the mean Tanimoto similarity of all pairs, each with itself among them (IntDiv)."""
    total = sum(float(_tanimoto(part, bits).sum()) for part in _parts(bits))
    return 1 - total / len(bits) ** 2


def nearest(bits: np.ndarray, known: np.ndarray) -> float:
    """The mean similarity to the nearest of the known ones (SNN)."""
    best = np.zeros(len(bits), np.float32)
    for part in _parts(known):
        np.maximum(best, _tanimoto(bits, part).max(1), out=best)
    return float(best.mean())


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def _tanimoto(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, M) of bits (N, BITS) and (M, BITS)."""
    both = one @ other.T
    either = one.sum(1)[:, None] + other.sum(1)[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def fragments(molecule: Chem.Mol) -> list[str]:
    """BRICS fragments (Degen et al. 2008)."""
    broken = Chem.FragmentOnBRICSBonds(molecule)
    return Chem.MolToSmiles(broken).split(".")


def scaffolds(molecule: Chem.Mol) -> list[str]:
    """The Bemis-Murcko scaffold, if it has two rings at least."""
    found = MurckoScaffold.GetScaffoldForMol(molecule)
    if rdMolDescriptors.CalcNumRings(found) < FEWEST_RINGS:
        return []
    return [Chem.MolToSmiles(found)]


def counted(made: Sequence[Chem.Mol], parts: Callable[[Chem.Mol], list[str]]) -> Counter[str]:
    """How often each part occurs."""
    return Counter(part for molecule in made for part in parts(molecule))


def cosine(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """The cosine between two vectors of counts; NaN where one is empty."""
    lengths = [np.sqrt(sum(count**2 for count in part.values())) for part in (one, other)]
    if not all(lengths):
        return float("nan")
    shared = sum(count * other[part] for part, count in one.items() if part in other)
    return float(shared / (lengths[0] * lengths[1]))


def frechet(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """The Fréchet distance of two Gaussians, each a mean (D,) and a covariance (D, D) (Dowson and
    Landau 1982): |m − n|² + tr(C + D − 2 (C D)^½)."""
    (mean, spread), (other_mean, other_spread) = one, other
    # The eigenvalues of C D are those of C^½ D C^½, which is symmetric.
    values, vectors = linalg.eigh(spread)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = linalg.eigvalsh(root @ other_spread @ root)
    shared = np.sqrt(inner.clip(min=0)).sum()
    apart = mean - other_mean
    return float(apart @ apart + np.trace(spread) + np.trace(other_spread) - 2 * shared)


# --- activities -------------------------------------------------------------------------------


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def missed_by(error: np.ndarray, alpha: float) -> float:
    """What errors stay below in 1 − alpha of the cases, for a new row too (split conformal
    prediction); 0 if there are too few of them to say."""
    place = int(np.ceil((1 - alpha) * (len(error) + 1)))
    return float(np.sort(error)[place - 1]) if 1 <= place <= len(error) else 0.0


def activities(
    prediction: Mapping[str, np.ndarray],
    value: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    fields: Sequence[Field],
) -> dict[str, float]:
    """Figures of `activity` and `margin` (N, T) of each field, where it is known, and their means.

    `covered` is the share of numbers within the margin. `error` is cross-entropy of what is yes or
    no, and of numbers the square of what is missed in their spread: 1 for one who always tells the
    mean.
    """
    found: dict[str, float] = {}
    for place, field in enumerate(fields):
        there = known[field.name]
        true = value[field.name][there]
        told, margin = (
            prediction[name][there, place].astype(float) for name in ("activity", "margin")
        )
        if field.kind == "yes_no":
            both = np.stack([1 - told, told], 1)
            one = {
                "auc": recognition.auc(told, true),
                "brier": float(np.mean((told - true) ** 2)) if len(true) else np.nan,
                "ece": calibration.ece(both, true.astype(int)) if len(true) else np.nan,
                "error": float(-np.log(np.where(true > 0.5, told, 1 - told).clip(1e-6)).mean())
                if len(true)
                else np.nan,
            }
        else:
            missed = np.mean((told - true) ** 2) if len(true) else np.nan
            spread = np.var(true) if len(true) > 1 else np.nan
            one = {
                "rmse": float(np.sqrt(missed)),
                "mae": float(np.abs(told - true).mean()) if len(true) else np.nan,
                "error": float(missed / max(spread, 1e-12)),
                "covered": _share(np.abs(told - true) <= margin) if margin.any() else np.nan,
            }
        found |= {f"{name}_{field.name}": figure for name, figure in one.items()}
    for name in ("error", "auc", "brier", "ece", "rmse", "mae", "covered"):
        figures = [v for k, v in found.items() if k.startswith(f"{name}_") and np.isfinite(v)]
        if any(k.startswith(f"{name}_") for k in found):
            found[name] = float(np.mean(figures)) if figures else float("nan")
    return found if len(fields) > 1 else {name: found[name] for name in found if "_" not in name}
