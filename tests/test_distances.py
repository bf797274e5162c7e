"""Fidelity and memorisation, against closed forms and against brute force."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from aigc_ray import distances
from aigc_ray.errors import UserError


@pytest.fixture(params=[1024, 7])
def tile(request, monkeypatch):
    """In one tile, and in many with a rest."""
    monkeypatch.setattr(distances, "TILE", request.param)


def normal(n, d=4, shift=0.0, seed=0):
    return shift + np.random.default_rng(seed).normal(size=(n, d))


# --- KID --------------------------------------------------------------------------------------


def brute_kid(x, y):
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within_x + within_y - 2 * xy.mean()


def test_kid_is_the_mean_over_all_pairs(tile):
    x, y = normal(30, seed=1), normal(23, shift=0.5, seed=2)
    assert np.isclose(distances.kid(x, y).value, brute_kid(x, y))


def test_the_interval_is_that_of_leaving_out_one_row_after_another(tile):
    x, y = normal(12, seed=1), normal(9, shift=0.5, seed=2)
    without_x = np.array([brute_kid(np.delete(x, i, 0), y) for i in range(12)])
    without_y = np.array([brute_kid(x, np.delete(y, i, 0)) for i in range(9)])
    variance = 11 * without_x.var() + 8 * without_y.var()
    found = distances.kid(x, y)
    assert np.isclose(found.high - found.low, 2 * stats.norm.ppf(0.975) * np.sqrt(variance))


def test_kid_of_shifted_normals_has_its_expectation_in_its_interval():
    # In one dimension (xy + 1)³ expands, so MMD² = 3(a₁ − b₁)² + 3(a₂ − b₂)² + (a₃ − b₃)² with
    # the raw moments of N(0, 1), which are 0, 1, 0, and of N(.5, 1): .5, 1.25, 1.625.
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    found = [
        distances.kid(normal(200, 1, seed=2 * s), normal(150, 1, 0.5, seed=2 * s + 1))
        for s in range(100)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - expected) < 4 * values.std() / 10
    hits = sum(one.low <= expected <= one.high for one in found)
    assert hits >= stats.binom.ppf(0.001, 100, 0.93)  # normal intervals of 150 skewed rows
    width = np.mean([one.high - one.low for one in found]) / (2 * 1.96)
    assert abs(width / values.std() - 1) < 0.3


def test_kid_of_one_distribution_is_nought_on_average_and_rarely_outside_its_interval():
    found = [distances.kid(normal(60, seed=2 * s), normal(60, seed=2 * s + 1)) for s in range(100)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / 10
    assert 0.2 < (values < 0).mean() < 0.9  # unbiased: it falls on both sides
    hits = sum(one.low <= 0 <= one.high for one in found)
    assert hits >= stats.binom.ppf(0.001, 100, 0.95)
    far = distances.kid(normal(60), normal(60, shift=1.0, seed=1))
    assert far.low > 0 and far.value > 10 * values.max()


# --- precision, recall, density, coverage -----------------------------------------------------


def brute_prdc(generated, real, k):
    between = cdist(generated, real)
    around_real = np.sort(cdist(real, real), axis=1)[:, k]  # place 0 is the row itself
    around_generated = np.sort(cdist(generated, generated), axis=1)[:, k]
    in_real = between <= around_real
    return (
        in_real.any(1).mean(),
        (between <= around_generated[:, None]).any(0).mean(),
        in_real.sum() / (k * len(generated)),
        in_real.any(0).mean(),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_is_that_of_the_whole_matrices(tile, k):
    generated, real = normal(61, 3, 0.7, seed=1), normal(50, 3, seed=2)
    found = distances.prdc(generated, real, k)
    assert np.allclose(found, brute_prdc(generated, real, k))
    assert all(0 < share < 1 for share in found)  # a case that could tell them apart


def test_prdc_by_hand():
    # Balls to the nearest other row: radius 1, 1 and 2 around 0, 1 and 3.
    real = np.array([[0.0], [1.0], [3.0]])
    generated = np.array([[0.5], [4.5], [9.0]])  # radius 4, 4 and 4.5
    found = distances.prdc(generated, real, k=1)
    # .5 lies in two real balls, 4.5 in one, 9 in none; every real row is within 4 of .5.
    assert found == distances.Prdc(precision=2 / 3, recall=1, density=1, coverage=1)


def test_the_real_rows_themselves_are_perfect_and_far_ones_worthless(tile):
    real = normal(40, 64)
    same = distances.prdc(real[::-1], real)  # in another order, so otherwise rounded
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # Each ball holds its centre and its five neighbours.
    assert np.isclose(same.density, 6 / 5)
    assert distances.prdc(real + 100, real) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_and_covers_nothing():
    real = normal(100)
    collapsed = real[:1] + 1e-3 * normal(100, seed=1)
    found = distances.prdc(collapsed, real)
    assert found.precision == 1 and found.recall < 0.05 and found.coverage < 0.2


# --- memorisation -----------------------------------------------------------------------------


def test_nearest_rows_are_those_of_the_whole_matrix(tile):
    a, b = normal(40, seed=1), normal(33, seed=2)
    whole = cdist(a, b)
    found = distances.nearest(a, b)
    assert np.allclose(found.distance, whole.min(1)) and np.all(found.row == whole.argmin(1))
    whole = cdist(a, a)
    np.fill_diagonal(whole, np.inf)
    found = distances.nearest(a, a, exclude_self=True)
    assert np.allclose(found.distance, whole.min(1)) and np.all(found.row == whole.argmin(1))


def test_a_copy_is_at_no_distance_at_all():
    train = normal(50, 64, shift=30.0).astype(np.float32)
    found = distances.nearest(train[::-1], train)
    assert np.all(found.distance == 0) and np.all(found.row == np.arange(50)[::-1])


def test_the_area_is_that_of_all_pairs_and_its_error_delongs():
    near, far = np.round(np.abs(normal(40, 1, 0.5)[:, 0]), 1), np.abs(normal(30, 1, 1.0, 1)[:, 0])
    far = np.round(far, 1)  # with ties
    wins = (near[:, None] < far) + 0.5 * (near[:, None] == far)
    found = distances.nearest_auc(near, far)
    assert np.isclose(found.value, wins.mean()) and found.value > 0.5
    error = np.sqrt(wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 30)
    assert np.isclose(found.high - found.value, stats.norm.ppf(0.975) * error)
    assert np.isclose(distances.nearest_auc(far, near).value, 1 - found.value)


def test_the_area_covers_one_half_where_nothing_is_copied():
    hits = 0
    for seed in range(200):
        near, far = np.abs(np.random.default_rng(seed).normal(size=(2, 80)))
        found = distances.nearest_auc(near, far)
        hits += found.low <= 0.5 <= found.high
    low, high = stats.binom.interval(0.999, 200, 0.95)
    assert low <= hits <= high


def test_an_area_of_one_still_has_an_interval():
    found = distances.nearest_auc(np.zeros(20), np.ones(30))
    assert (found.value, found.high) == (1, 1) and np.isclose(found.low, 0.025 ** (1 / 20))
    found = distances.nearest_auc(np.ones(20), np.zeros(30))
    assert (found.value, found.low) == (0, 0) and np.isclose(found.high, 1 - 0.025 ** (1 / 20))


def test_generators_that_copy_are_told_from_those_that_do_not():
    train, validation, honest = (normal(400, 8, seed=s) for s in range(3))
    far = distances.nearest(validation, train).distance
    copies = honest.copy()
    copies[:40] = train[:40] + 1e-3  # one in ten
    rates = []
    for generated in (honest, copies):
        near = distances.nearest(generated, train).distance
        rates.append(distances.copy_rate(near, far))
        area = distances.nearest_auc(near, far)
        assert area.low < 0.5 < area.high or generated is copies
    clean, copied = rates
    assert clean.low < 0.02 and clean.value < 0.04
    assert 0.1 <= copied.value < 0.14 and copied.low > 0.02
    all_copied = distances.nearest_auc(distances.nearest(train + 0.1, train).distance, far)
    assert all_copied.low > 0.9


def test_the_rate_is_a_share_with_its_exact_interval():
    # The first percentile of 1, 2, ... 101 is 2, and a distance equal to it counts.
    found = distances.copy_rate(np.array([0.5, 1.9, 2.0] + [2.1] * 97), np.arange(1.0, 102.0))
    assert found.value == 0.03
    assert np.isclose(found.low, stats.beta.ppf(0.025, 3, 98))
    assert np.isclose(found.high, stats.beta.ppf(0.975, 4, 97))


def test_copies_are_seen_where_validation_holds_duplicates_of_training():
    far = np.append(np.zeros(5), np.ones(95))
    assert distances.copy_rate(np.array([0.0, 0.0, 0.3, 0.5]), far).value == 0.5


# --- cost and bad input -----------------------------------------------------------------------


def test_memory_is_that_of_a_tile_not_of_all_pairs(monkeypatch):
    monkeypatch.setattr(distances, "TILE", 128)
    a, b = normal(3000, 8), normal(3000, 8, seed=1)  # all pairs: 72 MB
    tracemalloc.start()
    distances.kid(a, b)
    distances.prdc(a, b)
    distances.nearest(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


ROWS = normal(10)


@pytest.mark.parametrize("function", [distances.kid, distances.prdc])
@pytest.mark.parametrize(
    ("generated", "real", "sentence"),
    [
        (ROWS[:2], ROWS, "generated has . rows of features or more"),
        (ROWS, ROWS[:0], "real has . rows of features or more"),
        (ROWS[0], ROWS, "generated has . rows of features or more"),
        (ROWS, ROWS[:, :3], "real is 4 features wide, as generated; got 3"),
        (ROWS, ROWS * np.nan, "real is a number everywhere"),
    ],
)
def test_bad_features_are_named(function, generated, real, sentence):
    with pytest.raises(UserError, match=sentence):
        function(generated, real)


def test_bad_distances_are_named():
    with pytest.raises(UserError, match="generated_to_train has 2 distances or more"):
        distances.nearest_auc(np.empty(0), np.ones(3))
    with pytest.raises(UserError, match="validation_to_train holds distances of 0 or more"):
        distances.copy_rate(np.ones(3), np.array([1, np.nan]))
    with pytest.raises(UserError, match="exclude_self is for two or more rows"):
        distances.nearest(ROWS, ROWS[:5], exclude_self=True)
    with pytest.raises(UserError, match="k is at least 1; got 0"):
        distances.prdc(ROWS, ROWS, k=0)
