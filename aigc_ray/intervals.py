"""How sure a figure is that was measured on so many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from aigc_ray.errors import UserError


class Interval(NamedTuple):
    """A figure and where it may lie; in the figure's own unit."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Callable[..., float],
    *columns: np.ndarray,
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A metric on these rows, and the percentiles it takes on rows drawn again (Efron 1979).

    Draws on which the metric is NaN (a class may be absent) are left out.

    Args:
        metric: takes the columns, each with the same rows drawn, and gives a number.
        columns: (N, ...) each.
        strata: (N,); as many rows of each value in every draw as there are, e.g. of each class.
        groups: (N,); rows of one value are drawn together, e.g. all slices of a patient. A group
            whose rows lie in several strata counts to the highest: a patient with a finding in
            any image is a patient with the finding.

    Raises:
        UserError: columns are empty, unequal in length or hold NaN, or the metric is NaN on these
            rows or on more than half of the draws.
    """
    values, drawn = _drawn(lambda *part: {"": metric(*part)}, columns, strata, groups, draws, seed)
    if np.isnan(values[""]):
        raise UserError("the metric is not defined on these rows: is a class absent?")
    defined = drawn[""][~np.isnan(drawn[""])]
    if len(defined) < draws / 2:
        raise UserError(
            f"the metric is defined on {len(defined)} of {draws} draws; give strata, or more rows"
        )
    return _percentiles(values[""], defined, level)


def bootstraps(
    metrics: Callable[..., Mapping[str, float]],
    *columns: np.ndarray,
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Several metrics on the same draws, as `bootstrap`; an undefined one has no interval."""
    values, drawn = _drawn(metrics, columns, strata, groups, draws, seed)
    found = {}
    for name, value in values.items():
        defined = drawn[name][~np.isnan(drawn[name])]
        if not np.isnan(value) and len(defined) >= draws / 2:
            found[name] = _percentiles(value, defined, level)
    return found


def _drawn(
    metrics: Callable[..., Mapping[str, float]],
    columns: tuple[np.ndarray, ...],
    strata: np.ndarray | None,
    groups: np.ndarray | None,
    draws: int,
    seed: int,
) -> tuple[Mapping[str, float], dict[str, np.ndarray]]:
    """The metrics on the rows, and (draws,) of each on rows drawn again."""
    if not columns or not len(columns[0]):
        raise UserError("a bootstrap needs at least one row; there is none")
    named = {f"column {number}": column for number, column in enumerate(columns)}
    named |= {"strata": strata} if strata is not None else {}
    named |= {"groups": groups} if groups is not None else {}
    for name, column in named.items():
        if len(column) != len(columns[0]):
            raise UserError(
                f"{name} has as many rows as column 0, {len(columns[0])}; got {len(column)}"
            )
        if _missing(column):
            raise UserError(f"{name} holds missing values (NaN or None); leave out their rows")
    values = metrics(*columns)
    found = [
        metrics(*(column[rows] for column in columns))
        for rows in _resamples(len(columns[0]), strata, groups, draws, seed)
    ]
    return values, {name: np.array([one[name] for one in found]) for name in values}


def _percentiles(value: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def proportion(count: int, n: int, level: float = 0.95) -> Interval:
    """A share of n independent rows with its exact interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    if n < 1:
        raise UserError("a share needs at least one row; there is none")
    found = binomtest(count, n).proportion_ci(level, method="exact")
    return Interval(count / n, float(found.low), float(found.high))


def _resamples(
    n: int, strata: np.ndarray | None, groups: np.ndarray | None, draws: int, seed: int
) -> Iterator[np.ndarray]:
    """Row numbers, drawn with replacement within each stratum; whole groups where there are."""
    generator = np.random.default_rng(seed)
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    stratum = np.zeros(n, int) if strata is None else np.unique(strata, return_inverse=True)[1]
    size = np.bincount(group)
    highest = np.zeros(len(size), int)
    np.maximum.at(highest, group, stratum)
    pools = [np.flatnonzero(highest == value) for value in np.unique(highest)]
    by_group = np.argsort(group, kind="stable")
    first = np.cumsum(size) - size  # where in it a group begins
    for _ in range(draws):
        drawn = [pool[generator.integers(len(pool), size=len(pool))] for pool in pools]
        chosen = np.concatenate(drawn)
        long = size[chosen]
        before = np.cumsum(long) - long
        yield by_group[np.arange(long.sum()) + np.repeat(first[chosen] - before, long)]


def _missing(column: np.ndarray) -> bool:
    if column.dtype.kind == "f":
        return bool(np.isnan(column).any())
    if column.dtype.kind == "O":
        return any(value is None or value != value for value in column.flat)
    return False
