"""Backbones as people look at them: distance maps, and how far contacts reach."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray.tasks.proteins import geometry, metrics

SHOWN = 16  # maps in a picture


def one_map(ca: Tensor) -> bytes:
    """A PNG of the distance map of a trace (64, 3), near pairs dark, 256 pixels a side."""
    from PIL import Image

    drawn = Image.fromarray(_shaded(ca)).resize((256, 256), Image.Resampling.NEAREST)
    return _saved(drawn)


def maps(trace: Tensor, columns: int = 8) -> bytes:
    """A PNG of distance maps, near pairs dark."""
    from PIL import Image

    tiles = [
        np.pad(_shaded(ca), ((2, 2), (2, 2), (0, 0)), constant_values=255) for ca in trace[:SHOWN]
    ]
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return _saved(Image.fromarray(np.concatenate(rows)))


def _shaded(ca: Tensor) -> np.ndarray:
    """(L, L, 3) uint8, dark where residues are near each other."""
    from matplotlib import colormaps

    shade = geometry.scaled(geometry.distances(ca[None]))[0].clamp(0, 1).numpy()
    found: np.ndarray = (colormaps["viridis"](shade)[:, :, :3] * 255).astype(np.uint8)
    return found


def _saved(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def shapes(trace: Tensor, columns: int = 4) -> bytes:
    """A PNG of backbones seen from the side that shows most of them, blue at the first residue."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    count = min(len(trace), 8)
    figure, axes = _figure(-(-count // columns), columns)
    for place, ca in zip(axes.flat, trace[:count], strict=False):
        centred = ca - ca.mean(0)
        _, _, axis = torch.linalg.svd(centred)
        flat = (centred @ axis.T)[:, :2].numpy()
        lines = np.stack([flat[:-1], flat[1:]], 1)
        colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(lines)))
        place.add_collection(LineCollection(list(lines), colors=colours, linewidths=2))
        place.set_xlim(flat[:, 0].min() - 2, flat[:, 0].max() + 2)
        place.set_ylim(flat[:, 1].min() - 2, flat[:, 1].max() + 2)
    for place in axes.flat:
        place.set_aspect("equal")
        place.axis("off")
    return _png(figure)


def contacts(real: Tensor, generated: Tensor) -> bytes:
    """A PNG of the share of pairs that touch, by how far apart they are in the chain."""
    figure, axes = _figure(1, 1)
    for name, trace, colour in (("real", real, "#333"), ("generated", generated, "#255c99")):
        share = geometry.contact_probability(geometry.distances(trace)).mean(0)[metrics.FIRST :]
        axes[0, 0].plot(
            range(metrics.FIRST, metrics.FIRST + len(share)), share, label=name, c=colour
        )
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_xlabel("residues apart")
    axes[0, 0].set_ylabel("share nearer than 8 Å")
    axes[0, 0].legend()
    return _png(figure)


def pairs(ca: Tensor, effect: Tensor, title: str) -> bytes:
    """A PNG of a distance map under the effect (64, 64) of hiding each pair of residues: orange
    speaks for the answer, blue against it."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = _figure(1, 1)
    shade = geometry.distances(ca[None])[0].clamp(0, 25).numpy()
    axes[0, 0].imshow(shade, cmap="gray", interpolation="nearest")
    colours = ["#1a85ff", "#1a85ff00", "#e66100"]
    top = float(effect.abs().max().clamp(min=1e-9))
    overlay = LinearSegmentedColormap.from_list("effect", colours)
    axes[0, 0].imshow(effect.numpy(), cmap=overlay, vmin=-top, vmax=top, alpha=0.75)
    axes[0, 0].set_xlabel("residue")
    axes[0, 0].set_ylabel("residue")
    axes[0, 0].set_title(title, fontsize=9)
    return _png(figure)


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (4.2, 3.6) if rows * columns == 1 else (2.2 * columns, 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
