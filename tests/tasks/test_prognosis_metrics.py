"""Metrics of survival curves, against cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aigc_ray.tasks.prognosis import metrics
from tests import cohort

TIMES = np.array([0.0, 1.0, 2.0, 4.0])
CURVES = np.array([[1.0, 0.5, 0.25, 0.25], [1.0, 1.0, 0.5, 0.125]])


def test_between_two_times_the_logarithm_is_a_line():
    found = metrics.at(TIMES, CURVES, np.array([0.0, 0.5, 1.0, 3.0, 9.0]))
    np.testing.assert_allclose(found[0], [1, 0.5**0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(found[1], [1, 1, 1, 0.25, 0.125])
    np.testing.assert_allclose(metrics.own(TIMES, CURVES, np.array([0.5, 3.0])), [0.5**0.5, 0.25])


def test_concordance_counts_the_pairs_that_are_in_order():
    time, event = np.array([1.0, 2, 3, 4]), np.array([True, True, False, True])
    # Comparable: 1 with all later ones, 2 with 3 and 4; nothing is known after 3's end.
    harrell, _ = metrics.concordance(np.array([4.0, 3, 2, 1]), time, event)
    assert harrell == 1
    harrell, _ = metrics.concordance(np.array([4.0, 1, 2, 3]), time, event)
    assert harrell == pytest.approx(3 / 5)


def test_without_censoring_unos_concordance_is_harrells():
    random = np.random.default_rng(0)
    risk = random.normal(size=60)
    time = random.exponential(np.exp(-risk))
    harrell, uno = metrics.concordance(risk, time, np.ones(60, bool))
    assert uno == pytest.approx(harrell, abs=0.01)


def test_antolini_is_harrells_where_curves_do_not_cross():
    random = np.random.default_rng(0)
    risk = random.normal(size=80)
    time = random.exponential(np.exp(-risk))
    event = random.random(80) < 0.7
    survival = np.exp(-np.exp(risk)[:, None] * time)
    harrell, _ = metrics.concordance(risk, time, event)
    assert metrics.antolini(survival, time, event) == pytest.approx(harrell, abs=1e-6)


def test_without_censoring_the_brier_score_is_the_squared_error():
    time = np.array([1.0, 2.0, 3.0, 4.0])
    grid = np.array([1.5, 2.5])
    survival = np.array([[0.2, 0.1], [0.9, 0.3], [0.8, 0.7], [1.0, 0.6]])
    alive = time[:, None] > grid
    expected = ((survival - alive) ** 2).mean(0)
    found = metrics.integrated_brier(survival, grid, time, np.ones(4, bool))
    assert found == pytest.approx(expected.mean(), abs=1e-6)


def test_weights_make_up_for_the_censored():
    """The Brier score of the truth is the same, whether many are lost from sight or few."""
    scores = []
    for scale in (2.0, 50.0):
        random = np.random.default_rng(1)
        death = random.exponential(2, 20_000)
        lost = random.exponential(scale, 20_000)
        grid = np.linspace(0.2, 2, 20)
        truth = np.tile(np.exp(-grid / 2), (20_000, 1))
        scores.append(metrics.integrated_brier(truth, grid, np.minimum(death, lost), death <= lost))
    assert scores[0] == pytest.approx(scores[1], abs=0.005)


def test_true_curves_are_calibrated_and_others_are_not():
    found = cohort.made(3000)
    survival = np.exp(-found.rate * found.time)
    assert metrics.d_calibration(survival, found.event) > 0.05
    assert metrics.d_calibration(survival**2, found.event) < 1e-6
    assert metrics.tenths(survival, found.event).sum() == pytest.approx(3000)


def test_a_censored_patient_is_spread_over_what_was_still_to_come():
    counts = metrics.tenths(np.array([0.25]), np.array([False]))
    np.testing.assert_allclose(counts[:3], [0.4, 0.4, 0.2])
    assert counts[3:].sum() == 0


def test_the_likelihood_is_that_of_an_exponential():
    found = cohort.made(500)
    times = np.linspace(0, 60, 2000)
    survival = np.exp(-found.rate[:, None] * times)
    expected = -(found.event * np.log(found.rate) - found.rate * found.time).mean()
    assert metrics.nll(times, survival, found.time, found.event) == pytest.approx(
        expected, abs=0.02
    )


def test_where_nothing_can_be_said_there_is_no_number():
    none = metrics.figures(
        TIMES, CURVES, np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([False, False])
    )
    assert all(np.isnan(value) for value in none.values())


def test_a_course_without_an_event_stays_at_one():
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])
    when, left = metrics.kaplan_meier(time, event)
    assert left[np.searchsorted(when, [0.5, 1.5, 3.5], side="right") - 1] == pytest.approx(
        [1, 3 / 4, 3 / 8]
    )
    when, left = metrics.kaplan_meier(time, np.zeros(4, bool))
    assert when.tolist() == [0, 4] and left.tolist() == [1, 1]
