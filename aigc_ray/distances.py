"""How far generated rows lie from real ones, in a space of features (N, D).

Every function walks over tiles of the matrix of pairs: time grows with N·M·D, memory with one
tile. All raise `UserError`, in one sentence that names the argument, for too few rows, unequal
widths and NaN. Intervals take rows for independent: where a patient has many, give one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aigc_ray.errors import UserError
from aigc_ray.intervals import Interval, proportion

TILE = 1024  # rows and columns of a tile: 8 MB


# --- fidelity ---------------------------------------------------------------------------------


def kid(generated: np.ndarray, real: np.ndarray, level: float = 0.95) -> Interval:
    """Kernel inception distance, in any feature space (Bińkowski et al. 2018).

    The unbiased squared MMD with the kernel (x·y/D + 1)³ over all pairs, not a mean over subsets;
    around 0, and as often below, where both come from one distribution. The interval is normal
    with the variance of a jackknife over rows (Arvesen 1969): for U-statistics too wide rather
    than too narrow (Efron and Stein 1981), up to twice the variance where the true distance is 0.

    Args:
        generated: (N, D), 3 rows or more.
        real: (M, D), 3 rows or more.
    """
    from scipy.stats import norm

    generated, real = _features(3, generated=generated, real=real)
    n, m = len(generated), len(real)
    within_generated, within_real = np.zeros(n), np.zeros(m)  # sums of a row's kernels
    generated_real, real_generated = np.zeros(n), np.zeros(m)
    for rows, _, kernel in _kernels(generated, generated):
        within_generated[rows] += kernel.sum(1)
    for rows, _, kernel in _kernels(real, real):
        within_real[rows] += kernel.sum(1)
    for rows, columns, kernel in _kernels(generated, real):
        generated_real[rows] += kernel.sum(1)
        real_generated[columns] += kernel.sum(0)
    within_generated -= _own_kernel(generated)
    within_real -= _own_kernel(real)
    first, second, cross = within_generated.sum(), within_real.sum(), generated_real.sum()
    a, b = first / (n * (n - 1)), second / (m * (m - 1))
    value = a + b - 2 * cross / (n * m)
    # The same without one row: a row's own sums are all that changes.
    without_generated = (
        (first - 2 * within_generated) / ((n - 1) * (n - 2))
        + b
        - 2 * (cross - generated_real) / ((n - 1) * m)
    )
    without_real = (
        a
        + (second - 2 * within_real) / ((m - 1) * (m - 2))
        - 2 * (cross - real_generated) / (n * (m - 1))
    )
    variance = (n - 1) * without_generated.var() + (m - 1) * without_real.var()
    margin = norm.ppf((1 + level) / 2) * np.sqrt(variance)
    return Interval(float(value), float(value - margin), float(value + margin))


class Prdc(NamedTuple):
    """How well generated rows fill the region of the real ones; all but density 0 to 1."""

    precision: float  # share of generated rows within a real row's ball (Kynkäänniemi et al. 2019)
    recall: float  # share of real rows within a generated row's ball
    density: float  # real balls around a generated row over k, 1 expected (Naeem et al. 2020)
    coverage: float  # share of real rows' balls that hold a generated row


def prdc(generated: np.ndarray, real: np.ndarray, k: int = 5) -> Prdc:
    """Precision, recall, density and coverage.

    A row's ball reaches to its k-th nearest row of the same set, and includes its surface.

    Args:
        generated: (N, D), more than k rows.
        real: (M, D), more than k rows; as many as are generated, since coverage and recall fall
            with the number of rows on the other side.
    """
    if k < 1:
        raise UserError(f"k is at least 1; got {k}")
    generated, real = _features(k + 1, generated=generated, real=real)
    around_generated, around_real = _reach(generated, k), _reach(real, k)
    balls = np.zeros(len(generated), int)  # of real rows, that hold the generated row
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, columns, squared in _squared(generated, real):
        within_real = squared <= around_real[columns]
        balls[rows] += within_real.sum(1)
        covered[columns] |= within_real.any(0)
        recalled[columns] |= (squared <= around_generated[rows, None]).any(0)
    precision, density = (balls > 0).mean(), balls.mean() / k
    return Prdc(float(precision), float(recalled.mean()), float(density), float(covered.mean()))


def _reach(features: np.ndarray, k: int) -> np.ndarray:
    """(N,) squared distance to the k-th nearest other row."""
    reach = np.empty(len(features))
    for start in range(0, len(features), TILE):
        part = features[start : start + TILE]
        nearest = np.full((len(part), k), np.inf)
        for _, columns, squared in _squared(part, features):
            _leave_out_self(squared, start, columns)
            nearest = np.partition(np.concatenate([nearest, squared], 1), k - 1, axis=1)[:, :k]
        reach[start : start + TILE] = nearest.max(1)
    return reach * (1 + 1e-9)  # the k-th neighbour is inside, however its distance is rounded


# --- memorisation -----------------------------------------------------------------------------


class Nearest(NamedTuple):
    """Each row's nearest row in another set."""

    distance: np.ndarray  # (N,) Euclidean, in the features' unit; exactly 0 for a copy
    row: np.ndarray  # (N,) which row of the other set


def nearest(a: np.ndarray, b: np.ndarray, exclude_self: bool = False) -> Nearest:
    """For each row of a (N, D) the nearest of b (M, D).

    With `exclude_self`, a and b are the same rows in the same order, and a row is not its own
    neighbour.
    """
    a, b = _features(1, a=a, b=b)
    if exclude_self and (len(a) != len(b) or len(a) < 2):
        raise UserError(
            f"exclude_self is for two or more rows, the same in a and b; got {len(a)} and {len(b)}"
        )
    best, row = np.full(len(a), np.inf), np.zeros(len(a), int)
    for rows, columns, squared in _squared(a, b):
        if exclude_self:
            _leave_out_self(squared, rows.start, columns)
        where = squared.argmin(1)
        found = squared[np.arange(len(where)), where]
        closer = found < best[rows]
        best[rows] = np.where(closer, found, best[rows])
        row[rows] = np.where(closer, where + columns.start, row[rows])
    # Again by the difference: |a|² + |b|² − 2 a·b is not quite 0 for a copy.
    distance = np.empty(len(a))
    for start in range(0, len(a), TILE):
        part = slice(start, start + TILE)
        distance[part] = np.linalg.norm(a[part] - b[row[part]], axis=1)
    return Nearest(distance, row)


def nearest_auc(
    generated_to_train: np.ndarray, validation_to_train: np.ndarray, level: float = 0.95
) -> Interval:
    """Chance that a generated row is nearer to the training rows than an unseen real row is.

    Of distances by `nearest`, (N,) and (M,). 0.5: generated rows keep the distance of real ones.
    Above: they are too near, which means copying. Below: they are farther off than real rows are,
    which is poor fidelity and no proof against copies: see `copy_rate`. Interval by DeLong 1988;
    where the two do not overlap and that has no width, the exact one of min(N, M) disjoint pairs.
    """
    from scipy.stats import norm, rankdata

    near, far = _distances(
        2, generated_to_train=generated_to_train, validation_to_train=validation_to_train
    )
    n, m = len(near), len(far)
    ranks = rankdata(np.concatenate([near, far]))
    beaten_by = (ranks[n:] - rankdata(far)) / n  # a validation row: share of generated ones nearer
    beats = 1 - (ranks[:n] - rankdata(near)) / m  # a generated row: share of validation farther
    value = float(beats.mean())
    if value in (0.0, 1.0):
        pairs = proportion(round(value) * min(n, m), min(n, m), level)
        return Interval(value, pairs.low, pairs.high)
    error = np.sqrt(beats.var(ddof=1) / n + beaten_by.var(ddof=1) / m)
    margin = norm.ppf((1 + level) / 2) * error
    return Interval(value, float(max(0, value - margin)), float(min(1, value + margin)))


def copy_rate(
    generated_to_train: np.ndarray,
    validation_to_train: np.ndarray,
    percentile: float = 1.0,
    level: float = 0.95,
) -> Interval:
    """Share of generated rows as near to a training row as the nearest 1 % of unseen real rows.

    Of distances by `nearest`, (N,) and (M,). About the percentile itself (0.01) is expected of
    rows that are not copied. A distance equal to the percentile counts: where the validation rows
    hold duplicates of training rows it is 0, and copies must still be seen. The interval (Clopper
    and Pearson 1934) takes the percentile for known; give some hundred validation rows or more.
    """
    near, far = _distances(
        1, generated_to_train=generated_to_train, validation_to_train=validation_to_train
    )
    bound = np.percentile(far, percentile)
    return proportion(int((near <= bound).sum()), len(near), level)


# --- tiles ------------------------------------------------------------------------------------

Tile = tuple[slice, slice, np.ndarray]  # rows of the one, rows of the other, what they have between


def _tiles(a: np.ndarray, b: np.ndarray) -> Iterator[Tile]:
    """Products a·b."""
    for i in range(0, len(a), TILE):
        for j in range(0, len(b), TILE):
            rows, columns = slice(i, min(i + TILE, len(a))), slice(j, min(j + TILE, len(b)))
            yield rows, columns, a[rows] @ b[columns].T


def _squared(a: np.ndarray, b: np.ndarray) -> Iterator[Tile]:
    """Squared Euclidean distances."""
    long_a, long_b = (a * a).sum(1), (b * b).sum(1)
    for rows, columns, product in _tiles(a, b):
        squared = long_a[rows, None] + long_b[columns] - 2 * product
        yield rows, columns, np.maximum(squared, 0, out=squared)


def _kernels(a: np.ndarray, b: np.ndarray) -> Iterator[Tile]:
    for rows, columns, product in _tiles(a, b):
        base = product / a.shape[1] + 1
        yield rows, columns, base * base * base


def _own_kernel(features: np.ndarray) -> np.ndarray:
    return ((features * features).mean(1) + 1) ** 3


def _leave_out_self(squared: np.ndarray, start: int, columns: slice) -> None:
    """No row of this tile, whose first is row `start` of the columns' set, meets itself."""
    if start == columns.start:
        np.fill_diagonal(squared, np.inf)


def _features(least: int, **named: np.ndarray) -> list[np.ndarray]:
    checked: list[np.ndarray] = []
    for name, values in named.items():
        features = np.asarray(values, np.float64)
        if features.ndim != 2 or len(features) < least or not features.shape[1]:
            raise UserError(
                f"{name} has {least} rows of features or more; got shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise UserError(f"{name} is a number everywhere; it holds NaN or infinity")
        if checked and features.shape[1] != checked[0].shape[1]:
            raise UserError(
                f"{name} is {checked[0].shape[1]} features wide, as {next(iter(named))}; "
                f"got {features.shape[1]}"
            )
        checked.append(features)
    return checked


def _distances(least: int, **named: np.ndarray) -> list[np.ndarray]:
    checked = []
    for name, values in named.items():
        distances = np.asarray(values, np.float64)
        if distances.ndim != 1 or len(distances) < least:
            raise UserError(f"{name} has {least} distances or more; got shape {distances.shape}")
        if not np.isfinite(distances).all() or distances.min() < 0:
            raise UserError(f"{name} holds distances of 0 or more; got a negative one or NaN")
        checked.append(distances)
    return checked
