"""What a request for molecules asks for, read and checked before anything is generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rdkit import Chem

from aigc_ray.errors import UserError
from aigc_ray.task import whole
from aigc_ray.tasks.molecules import chemistry
from aigc_ray.tasks.molecules.chemistry import ALERTS, PROPERTIES

MOST = 10_000  # molecules in one request; more are a job's work
KEYS = (
    "n", "seed", "targets", "scaffold", "fragments", "must_have", "must_not_have", "filters",
    "novel", "similar_to", "similarity", "diverse", "optimise", "score", "rounds", "temperature",
    "guidance", "critic", "evidence", "svg", "molblock",
)  # fmt: skip
# How far from a wished value a property may be: about half of its spread among drug-like
# molecules, and nothing for what is counted.
TOLERANCE = {"logp": 0.5, "qed": 0.05, "sa": 0.3, "mw": 15.0, "tpsa": 8.0}
COUNTED = ("hbd", "hba", "rings")
TEMPERATURE = 0.95  # as near to MOSES' validation molecules as 1, and fewer are invalid
GUIDANCE = 0.5  # where a property is wished for: nearer to it, and fewer are molecules


class Range(NamedTuple):
    """What a property shall be: wished for at `aim`, accepted between `low` and `high`."""

    low: float
    high: float
    aim: float | None  # None: anywhere in the range


class Scaffold(NamedTuple):
    """A molecule that is kept whole, and the atoms at which something is to be attached."""

    molecule: Chem.Mol  # without the marks
    points: tuple[int, ...]  # numbers of atoms, as often as something is to be attached there


class Wanted(NamedTuple):
    """A request for molecules."""

    n: int
    seed: int
    targets: dict[str, Range]
    scaffold: Scaffold | None
    fragments: tuple[Scaffold, Scaffold] | None
    must_have: list[Chem.Mol]
    must_not_have: list[Chem.Mol]
    filters: tuple[str, ...]
    novel: bool
    similar_to: Chem.Mol | None
    similarity: tuple[float, float]
    diverse: bool
    optimise: str | None
    score: Callable[[str], float] | None
    rounds: int
    temperature: float
    guidance: float
    critic: bool
    evidence: bool
    svg: bool
    molblock: bool


def wanted(request: Mapping[str, Any], activities: Sequence[str]) -> Wanted:
    """A request as it was meant; keys of properties may stand beside the others.

    Raises:
        UserError: a key that is not known, or a value that cannot be; names it.
    """
    numbers = (*PROPERTIES, *activities)
    unknown = set(request) - {*KEYS, *numbers}
    if unknown:
        raise UserError(
            f"generate takes {', '.join(KEYS)} and targets by name ({', '.join(numbers)}); got "
            f"{', '.join(sorted(unknown))}"
        )
    n = request.get("n", 1)
    if isinstance(n, int) and n > MOST:
        raise UserError(
            f"n is at most {MOST} in a request; got {n}: `aigc-ray generate molecules@production "
            "--n N --out URI` or jobs/generate.py make more"
        )
    n = whole(request, "n", 1, 1, MOST)
    targets = _object(request.get("targets", {}), "targets")
    for name in targets:
        if name not in numbers:
            raise UserError(f"targets are of {', '.join(numbers)}; got {name}")
    targets |= {name: request[name] for name in numbers if name in request}
    scaffold, fragments = request.get("scaffold"), request.get("fragments")
    if scaffold is not None and fragments is not None:
        raise UserError("scaffold and fragments exclude each other; got both")
    similar = request.get("similar_to")
    optimise = request.get("optimise")
    if optimise is not None and str(optimise).lstrip("-") not in numbers:
        raise UserError(
            f"optimise is one of {', '.join(numbers)}, with a minus in front to lower it; got "
            f"{optimise!r}"
        )
    score = request.get("score")
    if score is not None and not callable(score):
        raise UserError(f"score is a Python function of a SMILES; got {score!r}")
    if optimise is not None and score is not None:
        raise UserError("optimise and score exclude each other; got both")
    told = any(name in PROPERTIES for name in targets)  # activities are not told, but predicted
    return Wanted(
        n=n,
        seed=whole(request, "seed", 0, 0, 2**63),
        targets={name: _range(name, value) for name, value in targets.items()},
        scaffold=None if scaffold is None else marked(scaffold, "scaffold"),
        fragments=None if fragments is None else _fragments(fragments),
        must_have=_patterns(request, "must_have"),
        must_not_have=_patterns(request, "must_not_have"),
        filters=_filters(request.get("filters", ("pains", "brenk"))),
        novel=flag(request, "novel", True),
        similar_to=None if similar is None else _molecule(similar, "similar_to"),
        similarity=_span(request.get("similarity", (0.4, 1.0)), "similarity", 0.0, 1.0),
        diverse=flag(request, "diverse", False),
        optimise=None if optimise is None else str(optimise),
        score=score,
        rounds=whole(request, "rounds", 5, 1, 50),
        temperature=_number(request, "temperature", TEMPERATURE, 0.1, 3.0),
        guidance=_number(request, "guidance", GUIDANCE if told else 0.0, 0.0, 5.0),
        critic=flag(request, "critic", True),
        evidence=flag(request, "evidence", True),
        svg=flag(request, "svg", False),
        molblock=flag(request, "molblock", False),
    )


def marked(text: Any, field: str) -> Scaffold:
    """A scaffold with its attachment points, which are marked `[*]` in its SMILES.

    Raises:
        UserError: it does not parse or is too large, or has no mark, or one that is not at the end
            of a single bond.
    """
    if not isinstance(text, str) or len(text) > chemistry.LONGEST:
        raise UserError(f"{field} is a SMILES with attachment points written [*]; got {text!r}")
    with chemistry.quiet():
        molecule = Chem.MolFromSmiles(text)
    if molecule is None:
        raise UserError(f"{field} is a SMILES with attachment points written [*]; got {text!r}")
    marks = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]
    if not marks:
        raise UserError(f"{field} needs an attachment point, written [*]; got {text!r}")
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise UserError(f"{field} is one molecule, all of it bound together; got {text!r}")
    edited, points = Chem.RWMol(molecule), []
    for mark in marks:
        bonds = mark.GetBonds()
        if len(bonds) != 1 or bonds[0].GetBondType() != Chem.BondType.SINGLE:
            raise UserError(f"{field}: each [*] hangs on one atom by a single bond; got {text!r}")
        atom = bonds[0].GetOtherAtom(mark)
        if atom.GetAtomicNum() == 0:
            raise UserError(f"{field} has atoms besides its attachment points; got {text!r}")
        points.append(atom.GetIdx())
    for mark, point in zip(marks, points, strict=True):
        atom = edited.GetAtomWithIdx(point)
        edited.RemoveBond(mark.GetIdx(), point)
        if (atom.GetIsAromatic() and atom.GetAtomicNum() != 6) or atom.GetNoImplicit():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() + 1)
    for index in sorted((mark.GetIdx() for mark in marks), reverse=True):
        edited.RemoveAtom(index)
        points = [point - (point > index) for point in points]
    found = edited.GetMol()
    with chemistry.quiet():
        if Chem.SanitizeMol(found, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            raise UserError(f"{field} is no molecule without its attachment points; got {text!r}")
    if found.GetNumHeavyAtoms() > chemistry.HEAVIEST // 2:
        raise UserError(f"{field} has at most {chemistry.HEAVIEST // 2} heavy atoms; got {text!r}")
    return Scaffold(found, tuple(points))


def _fragments(value: Any) -> tuple[Scaffold, Scaffold]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Sequence) or len(value) != 2:
        raise UserError(f"fragments are two SMILES, each with one [*]; got {value!r}")
    first, second = (marked(text, "fragments") for text in value)
    if len(first.points) != 1 or len(second.points) != 1:
        raise UserError(f"fragments are two SMILES, each with one [*]; got {value!r}")
    return first, second


def _range(name: str, value: Any) -> Range:
    """A number, or a range as [low, high] or, in a text, `low:high`."""
    parts = value
    if isinstance(value, str):
        parts = value.split(":")
        parts = parts if len(parts) > 1 else parts[0]
    if isinstance(parts, (list, tuple)):
        low, high = _span(parts, name, -math.inf, math.inf)
        return Range(low, high, None)
    aim = _finite(parts, name, "a number or a range [low, high]")
    room = TOLERANCE.get(name, math.inf) if name not in COUNTED else 0.0
    return Range(aim - room, aim + room, aim)


def _span(value: Any, field: str, lowest: float, highest: float) -> tuple[float, float]:
    if isinstance(value, str):
        value = value.split(":")
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"{field} is a range [low, high]; got {value!r}")
    low, high = (_finite(part, field, "a range [low, high] of numbers") for part in value)
    if not lowest <= low <= high <= highest:
        bounds = f" from {lowest:g} to {highest:g}" if math.isfinite(highest) else ""
        raise UserError(f"{field} is a range [low, high]{bounds}; got {value!r}")
    return low, high


def _finite(value: Any, field: str, what: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{field} is {what}; got {value!r}")
    return number


def _number(request: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = _finite(request.get(key, default), key, f"a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise UserError(f"{key} is a number from {low:g} to {high:g}; got {value:g}")
    return value


def flag(request: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no of a request."""
    value = request.get(key, default)
    words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    found = words.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise UserError(f"{key} is true or false; got {value!r}")
    return found


def _patterns(request: Mapping[str, Any], key: str) -> list[Chem.Mol]:
    value = request.get(key, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{key} is a list of SMARTS patterns; got {value!r}")
    return [chemistry.pattern(text, key) for text in texts]


def _filters(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Sequence):
        raise UserError(f"filters is a list of {', '.join(ALERTS)}; got {value!r}")
    names = [name for name in names if name not in ("", "none")]
    for name in names:
        if name not in ALERTS:
            raise UserError(f"filters is a list of {', '.join(ALERTS)}; got {name!r}")
    return tuple(names)


def _molecule(text: Any, field: str) -> Chem.Mol:
    if not isinstance(text, str):
        raise UserError(f"{field} is a SMILES; got {text!r}")
    try:
        return chemistry.read(text)
    except UserError as fault:
        raise UserError(f"{field}: {fault}") from None


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f'{field} is an object, as {{"logp": 2.5, "qed": [0.7, 1]}}; got {value!r}')
    return dict(value)
