"""How like a generated cohort is the real one: its columns, their ties, and its course."""

from __future__ import annotations

import numpy as np
import torch

from aigc_ray.schema import Schema
from aigc_ray.task import Batch
from aigc_ray.tasks.prognosis import metrics

TIMES = 100  # at which two courses are compared, up to the 90th percentile of the real times


def compared(real: Batch, other: Batch, schema: Schema) -> dict[str, float]:
    """Distances of two cohorts, each 0 where they are the same and 1 at most.

    `marginals`: the mean over the columns of the largest gap between two distribution functions
    (Kolmogorov and Smirnov), or for categories of the total variation; what is missing counts as a
    value. `ties`: the mean gap between two columns' rank correlations. `course`: the mean gap
    between two Kaplan-Meier curves.
    """
    apart, ranks = [], ([], [])  # type: tuple[list[float], tuple[list[np.ndarray], ...]]
    for field in schema.fields:
        known = [batch.known[field.name].numpy() for batch in (real, other)]
        values = [batch.value[field.name].numpy().astype(float) for batch in (real, other)]
        if field.name in ("time", "event"):
            known = [np.ones(len(value), bool) for value in values]
        categories = field.kind == "category" and not field.ordered
        gap = _variation if categories else _largest_gap
        both = [value[here] for value, here in zip(values, known, strict=True)]
        missing = abs(known[0].mean() - known[1].mean())
        apart.append(max(missing, gap(*both)) if all(map(len, both)) else missing)
        for column, value, here in zip(ranks, values, known, strict=True):
            for one in range(len(field.values)) if categories else (None,):
                column.append(_ranks(value if one is None else value == one, here))
    ties = [np.corrcoef(np.stack(columns)) for columns in ranks]
    pairs = np.triu_indices(len(ties[0]), 1)
    gaps = np.nan_to_num(ties[0]) - np.nan_to_num(ties[1])
    return {
        "marginals": float(np.mean(apart)),
        "ties": float(np.abs(gaps[pairs]).mean()),
        "course": _course(real, other),
    }


def _largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import ks_2samp

    return float(ks_2samp(a, b, method="asymp").statistic)


def _variation(a: np.ndarray, b: np.ndarray) -> float:
    size = int(max(a.max(), b.max())) + 1
    shares = [np.bincount(one.astype(int), minlength=size) / len(one) for one in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _ranks(value: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Ranks of what is known; the rest takes the middle."""
    from scipy.stats import rankdata

    found = np.full(len(value), np.nan)
    found[known] = rankdata(value[known])
    return np.nan_to_num(found, nan=float(np.nanmean(found)) if known.any() else 0.0)


def _course(real: Batch, other: Batch) -> float:
    grid = np.linspace(0, float(torch.quantile(real.value["time"].double(), 0.9)), TIMES)
    curves = []
    for batch in (real, other):
        time, event = batch.value["time"].numpy(), batch.value["event"].numpy() > 0.5
        times, left = metrics.kaplan_meier(time, event)
        curves.append(left[np.searchsorted(times, grid, side="right") - 1])
    return float(np.abs(curves[0] - curves[1]).mean())
