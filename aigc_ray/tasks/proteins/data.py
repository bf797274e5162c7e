"""Windows of backbones as records and as tensors: what ingestion, training and serving share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Columns, Record, Reject, Source
from aigc_ray.tasks.proteins import sources, structures
from aigc_ray.tasks.proteins.assignment import assign, fold_class
from aigc_ray.tasks.proteins.structures import WINDOW, Chain

TRACE, STRUCTURE, LABEL = "trace", "structure", "label"
CLASSES = ("alpha", "alpha and beta", "beta", "little")
STATES = "CHE"  # neither, helix, strand; code 1 is the first
MOST_WINDOWS = 32  # of one file that are answered together


def schema() -> Schema:
    """The fields of windows of 64 residues: CA atoms, secondary structure, what it is made of."""
    return Schema(
        (
            Field(
                name=TRACE,
                kind="number",
                parts=("generated", "input"),
                shape=(WINDOW, 3),
                unit="angstrom",
            ),
            Field(
                name=STRUCTURE,
                kind="codes",
                parts=("generated", "target"),
                shape=(WINDOW,),
                values=tuple(STATES),
            ),
            Field(name=LABEL, kind="category", parts=("condition", "target"), values=CLASSES),
        )
    )


def read(source: Source, schema: Schema, stride: int) -> Iterator[Record | Reject]:
    """The windows of a file's chains, each as a row of the file's family."""
    try:
        chains = sources.chains_of(source)
    except UserError as fault:
        yield Reject(source["name"], str(fault))
        return
    for chain in chains:
        for window in sources.windows(chain, stride):
            record = described(chain.backbone[window, 1], schema)
            where = f"{source['name']}:{chain.name}:{chain.number[window.start]}"
            split = source.get("split")
            yield record | {"split": split, "patient": source["group"], "source": where}


def described(ca: np.ndarray, schema: Schema) -> Record:
    """A window (64, 3) with what is computed of it."""
    states = assign(ca)
    return {
        TRACE: (ca - ca.mean(0)).astype(np.float32),
        STRUCTURE: (states + 1).astype(np.uint8),
        LABEL: schema[LABEL].index(fold_class(states)),
        "extra": None,
    }


def letters(codes: np.ndarray) -> str:
    """Secondary structure as text: H, E and C, a letter a residue."""
    return "".join(STATES[code - 1] for code in codes)


# --- requests ---------------------------------------------------------------------------------


def parse(item: Mapping[str, Any]) -> Record:
    """The first window of a file's chain, with its other windows as variants; or 64 coordinates.

    Raises:
        UserError: it cannot be read, or has no such chain.
    """
    if "coordinates" in item:
        return _window(_coordinates(item["coordinates"]))
    content, name = item.get("file", item.get("pdb")), str(item.get("filename", "file"))
    if isinstance(content, str):
        content, name = content.encode(errors="replace"), str(item.get("filename", "pdb"))
    if not isinstance(content, bytes):
        raise UserError(
            'file is a PDB or mmCIF file; send it as an upload, its text as "pdb", or 64 points as '
            '"coordinates"'
        )
    chain = _chosen(structures.parse(content, name), item.get("chain"), name)
    windows = [_told(chain, window) for window in sources.windows(chain, WINDOW)]
    first, others = windows[0], windows[1 : 1 + MOST_WINDOWS]
    warnings = []
    if len(windows) > 1 + MOST_WINDOWS:
        warnings.append(f"{len(windows) - 1 - MOST_WINDOWS} further windows are not told of")
    variants = {f"{chain.name}:{one['residues'][0]}-{one['residues'][-1]}": one for one in others}
    return first | {"variants": variants, "warnings": warnings}


def _chosen(chains: list[Chain], wanted: Any, name: str) -> Chain:
    if wanted is None or wanted == "":
        return chains[0]
    found = next((chain for chain in chains if chain.name == wanted), None)
    if found is None:
        known = ", ".join(chain.name for chain in chains)
        raise UserError(f"{name}: chain is one of {known}; got {wanted!r}")
    return found


def _told(chain: Chain, window: slice) -> Record:
    about = {
        "chain": chain.name,
        "residues": chain.number[window],
        "sequence": chain.sequence[window],
    }
    return _window(chain.backbone[window, 1]) | about


def _window(ca: np.ndarray) -> Record:
    """What is known of a window without a recogniser is not part of the question."""
    return {TRACE: (ca - ca.mean(0)).astype(np.float32)}


def _coordinates(given: Any) -> np.ndarray:
    try:
        ca: np.ndarray = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        ca = np.empty(0)
    if ca.shape != (WINDOW, 3) or not np.isfinite(ca).all():
        raise UserError(f"coordinates are {WINDOW} points [x, y, z] in angstrom, of CA atoms")
    step = np.linalg.norm(np.diff(ca, axis=0), axis=1)
    low, high = structures.BOND
    if not ((step >= low) & (step <= high)).all():
        place = int(np.flatnonzero((step < low) | (step > high))[0]) + 1
        raise UserError(
            f"coordinates: points {place} and {place + 1} are {step[place - 1]:.1f} angstrom "
            f"apart; neighbouring CA atoms are {low} to {high}"
        )
    return ca


def encode(columns: Columns, row: Tensor) -> Batch:
    """Columns as tensors; what is absent is not known, and a trace that is absent a straight
    line."""
    size = len(row)
    line = torch.zeros(size, WINDOW, 3)
    line[:, :, 0] = 3.8 * torch.arange(WINDOW)
    trace, codes, label = (columns.get(name) for name in (TRACE, STRUCTURE, LABEL))
    here = torch.ones(size, dtype=torch.bool)
    value, known = {TRACE: line}, {TRACE: here & (trace is not None)}
    if trace is not None:
        value[TRACE] = torch.from_numpy(np.array(trace, np.float32)).view(size, WINDOW, 3)
    value[STRUCTURE] = torch.ones(size, WINDOW, dtype=torch.int64)
    if codes is not None:
        value[STRUCTURE] = torch.from_numpy(np.array(codes, np.uint8)).long()
    known[STRUCTURE] = here & (codes is not None)
    index = torch.full((size,), -1)
    if label is not None:
        index = torch.from_numpy(np.array(label, np.int64))
    value[LABEL], known[LABEL] = index.clamp(min=0), index >= 0
    return Batch(value, known, torch.ones(size), row)
