"""Sequences as people in the field look at them: logos, and words in real and generated ones."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np

from aigc_ray.tasks.dna import metrics

# Apart in brightness too; the colours that sequence viewers use.
COLOURS = {"A": "#109648", "C": "#255c99", "G": "#d6a219", "T": "#d62839"}
WIDEST = 100  # positions in a row of a picture


def logo(heights: np.ndarray, ylabel: str, title: str = "") -> bytes:
    """A PNG with a letter of that height (L, 4) at each position; those below zero hang down."""
    rows = -(-len(heights) // WIDEST)
    figure, every = _figure(rows, min(len(heights), WIDEST))
    high = max(1e-9, float(np.clip(heights, 0, None).sum(1).max()))
    low = min(0.0, float(np.clip(heights, None, 0).sum(1).min()))
    for number, axes in enumerate(every):
        part = heights[number * WIDEST : (number + 1) * WIDEST]
        start = number * WIDEST + 1  # people count positions from 1
        _stacked(axes, part, start)
        axes.set_xlim(start - 0.5, start + min(len(heights), WIDEST) - 0.5)
        axes.set_ylim(low * 1.05, high * 1.05)
        axes.axhline(0, color="#888", linewidth=0.5)
        axes.set_ylabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_title(title, fontsize=10)
    return _png(figure)


def information(codes: np.ndarray) -> np.ndarray:
    """(L, 4) each letter's share of the information at its position, in bits (Schneider and
    Stephens 1990)."""
    share = metrics.letters_by_place(codes)
    entropy = -(share * np.log2(np.clip(share, 1e-12, 1))).sum(1, keepdims=True)
    found: np.ndarray = share * (2 - entropy)
    return found


def words(real: np.ndarray, generated: np.ndarray, order: int = 4) -> bytes:
    """A PNG of how often words stand in real and in generated sequences."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    a, b = (metrics.spectrum(codes, order) * 1e3 for codes in (real, generated))
    top = 1.05 * float(max(a.max(), b.max()))
    axes.plot([0, top], [0, top], color="#bbb", linewidth=1)
    axes.scatter(a, b, s=8, color="#255c99", alpha=0.6)
    axes.set_xlabel(f"in real sequences, per 1,000 words of {order} letters")
    axes.set_ylabel("in generated ones")
    return _png(figure)


def _stacked(axes: Any, heights: np.ndarray, start: int) -> None:
    """The letters of positions from `start` on (n, 4), at each the largest outermost: one patch a
    letter for all positions, since patches take their time."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    order = np.argsort(np.abs(heights), 1)
    ranked = np.take_along_axis(heights, order, 1)
    up, down = np.clip(ranked, 0, None), np.clip(ranked, None, 0)
    # Above zero a letter begins where those nearer to it end, below where it ends itself.
    foot = np.where(ranked > 0, up.cumsum(1) - up, down.cumsum(1))
    for index, letter in enumerate("ACGT"):
        place, rank = np.nonzero((order == index) & (np.abs(ranked) >= 1e-9))
        if not len(place):
            continue
        outline = _outline(letter)
        box = outline.get_extents()
        tall = np.abs(ranked[place, rank])[:, None] / box.height
        x = (outline.vertices[:, 0] - box.x0) * 0.9 / box.width + (start + place[:, None] - 0.45)
        y = (outline.vertices[:, 1] - box.y0) * tall + foot[place, rank][:, None]
        path = Path(np.stack([x, y], 2).reshape(-1, 2), np.tile(outline.codes, len(place)))
        # As a mere artist: `add_patch` would search every curve for its ends, and the limits are
        # known.
        axes.add_artist(PathPatch(path, color=COLOURS[letter], linewidth=0))


@cache
def _outline(letter: str) -> Any:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath(
        (0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold")
    )


def _figure(rows: int, width: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.11 * width + 1), 1.6 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, 1, squeeze=False)[:, 0]
    return figure, list(every)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
