"""Generated backbones: candidates that are checked, and what is told of each."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ray import noise
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.task import Batch, Item, Shortfall, whole
from aigc_ray.tasks.proteins import backbone, data, metrics, pictures
from aigc_ray.tasks.proteins.assignment import assign, fold_class
from aigc_ray.tasks.proteins.data import LABEL, STRUCTURE, TRACE

MOST = 1_000  # structures of one request
ROUND = 8  # candidates that are made at a time
TRIES = 30  # candidates for each structure that is wanted, at most
ALLOWED = 0.9  # share of residues whose torsions are those of proteins, at least
KEYS = ("n", "seed", "class", "plausible")


class Wanted(NamedTuple):
    """A request for structures, checked."""

    n: int
    seed: int
    label: int | None
    plausible: float


def wanted(request: Mapping[str, Any], classes: tuple[str, ...]) -> Wanted:
    """What a request asks for.

    Raises:
        UserError: it cannot be read.
    """
    unknown = sorted(set(request) - set(KEYS))
    if unknown:
        raise UserError(f"generate takes {', '.join(KEYS)}; got {', '.join(unknown)}")
    name, plausible = request.get("class"), request.get("plausible", 0.5)
    if name is not None and name not in classes:
        raise UserError(f"class is one of {', '.join(classes)}; got {name!r}")
    try:  # it may be text, from a command line
        share = math.nan if isinstance(plausible, bool) else float(plausible)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share < 1:
        raise UserError(f"plausible is at least 0 and below 1; got {plausible!r}")
    return Wanted(
        n=whole(request, "n", 1, 1, MOST),
        seed=whole(request, "seed", 0, 0, 2**63),
        label=None if name is None else classes.index(name),
        plausible=share,
    )


def generate(model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
    """Structures of a class, each with what speaks for it."""
    classes = model.task.schema[LABEL].values
    yield from _items(model, wanted(request, classes), classes)


def _items(model: Model, asked: Wanted, classes: tuple[str, ...]) -> Iterator[Item | Shortfall]:
    """Where no class is asked for, one in turn of each that was trained on; the others go on where
    one of them cannot be made."""
    walks: Any = model.members[0]["walks"]
    known: list[int] = walks.first.flatten(1).any(1).nonzero()[:, 0].tolist()
    turns = known if asked.label is None else [asked.label]
    share = -(-asked.n // len(turns))
    told: Counter[str] = Counter()
    streams = deque(_stream(model, asked, classes, turns, turn, share, told) for turn in turns)
    made = 0
    while streams and made < asked.n:
        stream = streams.popleft()
        item = next(stream, None)
        if item is not None:
            yield item
            made += 1
            streams.append(stream)
    if made < asked.n:
        tried = told.pop("tried")
        reasons = ", ".join(f"{count} {why}" for why, count in told.most_common())
        yield Shortfall(asked.n - made, f"of {tried} structures that were made {reasons}")


def _stream(
    model: Model,
    asked: Wanted,
    classes: tuple[str, ...],
    turns: Sequence[int],
    label: int,
    share: int,
    told: Counter[str],
) -> Iterator[Item]:
    """Structures of one class, of which `share` are wanted; what became of the others is `told`."""
    for first in range(0, TRIES * max(share, 4), ROUND):
        number = torch.arange(first, first + ROUND) * len(turns) + turns.index(label)
        row = noise.keys(asked.seed, number)
        # Rounded first, so that what is told is of the coordinates that are given.
        trace = (drawn(model, torch.full_like(number, label), row) * 1000).round() / 1000
        seen = recognised(model, trace)
        told["tried"] += ROUND
        for place, ca in enumerate(trace):
            plausible = float(seen["plausibility"][place])
            why = _why_not(ca, label, plausible, classes, asked)
            if why is not None:
                told[why] += 1
                continue
            about: Item = {
                "seed": asked.seed,
                "number": int(number[place]),
                "class": classes[label],
                "probability": round(float(seen["probability"][place, label]), 4),
                "plausibility": round(plausible, 4),
            }
            yield about | evidence(model, ca)


def drawn(model: Model, label: Tensor, row: Tensor) -> Tensor:
    """Traces (B, 64, 3) of these classes (B,)."""
    known = {LABEL: torch.ones_like(label, dtype=torch.bool)}
    return model.draw(Batch({LABEL: label}, known, torch.ones(len(label)), row)).value[TRACE]


def recognised(model: Model, trace: Tensor) -> dict[str, Tensor]:
    """What the model's own recogniser says of traces."""
    zero = torch.zeros(len(trace), dtype=torch.int64)
    states = torch.ones(len(trace), trace.shape[1], dtype=torch.int64)
    value = {TRACE: trace, STRUCTURE: states, LABEL: zero}
    known = {TRACE: zero == 0, STRUCTURE: zero != 0, LABEL: zero != 0}
    return model.recognise(Batch(value, known, torch.ones(len(trace)), zero))


def _why_not(
    ca: Tensor, label: int, plausible: float, classes: tuple[str, ...], asked: Wanted
) -> str | None:
    """What is wrong with a candidate."""
    if metrics.clash_rate(ca[None]).pairs > 0:
        return "had residues that clash"
    if metrics.bond_ok(ca[None]) < 1:
        return "had bonds of another length than 3.8 angstrom"
    if classes[label] != fold_class(assign(ca.numpy())):
        return "came to be of another class"
    if plausible < asked.plausible:
        return "looked like no protein to the recogniser"
    if metrics.ramachandran_allowed(backbone.backbone(ca[None])).allowed < ALLOWED:
        return "had torsions that proteins seldom have"
    return None


def evidence(model: Model, ca: Tensor) -> Item:
    """What is told of a structure, with its backbone as a PDB file and its map as a picture."""
    atoms = backbone.backbone(ca[None])
    states = data.letters(assign(ca.numpy()) + 1)
    handed = metrics.right_handed(ca[None])
    allowed = metrics.ramachandran_allowed(atoms)
    note = ["GENERATED BY AIGC_RAY, NOT A STRUCTURE THAT WAS MEASURED"]
    found: Item = {
        "coordinates": [[round(float(x), 3) for x in point] for point in ca],
        "secondary_structure": states,
        "checks": {
            "bonds": round(metrics.bond_ok(ca[None]), 4),
            "clashes": round(metrics.clash_rate(ca[None]).pairs, 4),
            "right_handed": round(handed.right, 4) if handed.helices else None,
            "ramachandran_allowed": round(allowed.allowed, 4),
        },
        "pdb": backbone.to_pdb(atoms[0], None, note, states),
        "map": pictures.one_map(ca),
    }
    memory: Any = model.members[0]["memory"]
    kept = memory.trace[memory.kept]
    if len(kept):
        found["nearest"] = {"rmsd": round(float(metrics.nearest(ca[None], kept).rmsd[0]), 3)}
    return found
