"""Molecules as a person judges them: drawn side by side, and their properties as distributions."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import Draw

from aigc_ray.recognition import png
from aigc_ray.tasks.molecules import chemistry, data, design, wishes
from aigc_ray.tasks.molecules.chemistry import PROPERTIES, UNITS

if TYPE_CHECKING:
    from aigc_ray.model import Model
    from aigc_ray.task import Batch

SHOWN, ACROSS, SIZE = 12, 4, 220  # molecules in a picture, in a line of it, and pixels of one
COMPARED = 500  # molecules whose properties are compared, at most


def made(model: Model, count: int, **changes: Any) -> list[str]:
    """SMILES of generated molecules, without a choice among them but the critic's."""
    asked = {"n": count, "filters": [], "novel": False, "evidence": False} | changes
    length = model.task.schema[data.CODES].shape[0]
    items = design.generate(model.members[0], length, wishes.wanted(asked, ()))
    return [item["smiles"] for item in items if isinstance(item, dict)]


def drawn(smiles: Sequence[str]) -> bytes:
    """A PNG of molecules, line by line."""
    molecules = [chemistry.read(text) for text in smiles] or [Chem.MolFromSmiles("")]
    image = Draw.MolsToGridImage(
        molecules, molsPerRow=ACROSS, subImgSize=(SIZE, SIZE), returnPNG=False
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def told(model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
    """What is generated beside what is real."""
    real = [text for text in data.smiles_of(batch.value[data.CODES]) if text][:COMPARED]
    fake = made(model, len(real))
    yield "Generated molecules", drawn(fake[:SHOWN])
    yield "Real molecules", drawn(real[:SHOWN])
    yield "Properties of generated and of real molecules", _distributions(fake, real)


def _distributions(fake: Sequence[str], real: Sequence[str]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained")
    sides = [[chemistry.properties(chemistry.read(text)) for text in part] for part in (fake, real)]
    for place, name in zip(axes.flat, PROPERTIES, strict=True):
        columns = [np.array([one[name] for one in part]) for part in sides]
        everything = np.concatenate(columns)
        if len(everything):
            edges = np.linspace(everything.min(), everything.max() + 1e-6, 24)
            for column, label in zip(columns, ("generated", "real"), strict=True):
                place.hist(column, edges, density=True, histtype="step", label=label)
        unit = f" in {UNITS[name]}" if name in UNITS else ""
        place.set(xlabel=f"{name}{unit}", yticks=[])
    axes.flat[0].legend(fontsize=8)
    return png(figure)
