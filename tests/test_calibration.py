"""Calibrated or withheld answers, operating points and bootstrap intervals, against known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from aigc_ray import calibration, decisions, intervals
from aigc_ray.errors import UserError


def softmax(logits):
    power = np.exp(logits - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def drawn(probability, rng):
    """Labels by these probabilities (N, K)."""
    return (rng.random((len(probability), 1)) > probability.cumsum(1)[:, :-1]).sum(1)


def calibrated(n, k=4, seed=0, scale=1.5):
    """Logits, and labels for which their softmax is exactly right."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n, k))
    return logits, drawn(softmax(logits), rng)


def independent(n, k=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    return logits, (rng.random((n, k)) < sigmoid(logits)).astype(int)


# --- temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_again(known):
    # At T = known, probabilities of logits·known are right again.
    logits, label = calibrated(20_000)
    assert abs(calibration.temperature(softmax(logits * known), label) / known - 1) < 0.03
    logits, label = independent(20_000)
    assert abs(calibration.temperature(sigmoid(logits * known), label) / known - 1) < 0.03


def test_applying_a_temperature_divides_logits():
    logits, _ = calibrated(50)
    assert np.allclose(calibration.apply(softmax(logits), 2.0), softmax(logits / 2))
    assert np.allclose(calibration.apply(sigmoid(logits), 2.0, several=True), sigmoid(logits / 2))
    certain = calibration.apply(np.array([[1.0, 0.0]]), 0.05)
    assert np.isfinite(certain).all() and certain[0, 0] == 1


def test_the_chosen_temperature_is_the_best_of_a_grid():
    logits, label = calibrated(300, seed=1)
    probability = softmax(3 * logits)
    best = calibration.nll(calibration.apply(probability, 1.0), label)
    grid = [calibration.nll(calibration.apply(probability, t), label) for t in np.arange(1, 8, 0.1)]
    found = calibration.temperature(probability, label)
    at_found = calibration.nll(calibration.apply(probability, found), label)
    assert at_found <= min(grid) + 1e-9 and at_found < best


def test_without_a_wrong_answer_the_temperature_stays_one():
    probability = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert calibration.temperature(probability, np.array([0, 1])) == 1.0
    assert calibration.temperature(probability, np.array([[1, 0], [0, 1]])) == 1.0


# --- conformal sets ---------------------------------------------------------------------------


def test_a_conformal_threshold_by_hand():
    truth = np.arange(1, 20) / 20  # 19 rows; ceil(20 · .9) = 18th largest is the 2nd smallest
    probability = np.stack([truth, 1 - truth], 1)
    found = calibration.conformal(probability, np.zeros(19, int), 0.1)
    assert found.threshold[0] == 0.1 and not found.pooled[0]
    assert found.threshold[1] == 0.1 and found.pooled[1]  # class 1 has no row of its own
    chosen = calibration.sets(np.array([[0.95, 0.05], [0.5, 0.5]]), found.threshold)
    assert chosen.tolist() == [[True, False], [True, True]]


def test_a_class_is_pooled_below_nine_rows_at_ten_per_cent():
    probability = np.full((28, 3), 1 / 3)
    label = np.repeat([0, 1, 2], [8, 9, 11])
    assert calibration.conformal(probability, label, 0.1).pooled.tolist() == [True, False, False]


def test_with_too_few_rows_a_set_holds_every_class():
    probability, label = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0])
    threshold = calibration.conformal(probability, label, 0.1).threshold
    assert calibration.sets(np.array([[1.0, 0.0]]), threshold).all()


def test_sets_hold_the_truth_as_often_as_promised_in_every_class():
    # Of probabilities that are wrong: the promise needs exchangeable rows, nothing else.
    alpha, hits, rows = 0.1, np.zeros(3), np.zeros(3)
    for seed in range(200):
        logits, label = calibrated(300, k=3, seed=seed)
        probability = softmax(3 * logits + [1.0, 0.0, -1.0])
        found = calibration.conformal(probability[:200], label[:200], alpha)
        assert not found.pooled.any()
        held = calibration.sets(probability[200:], found.threshold)[np.arange(100), label[200:]]
        hits += np.bincount(label[200:], held, minlength=3)
        rows += np.bincount(label[200:], minlength=3)
    # About 67 rows a class give the threshold and 33 meet it; both shares vary between trials.
    margin = 4 * math.sqrt(alpha * (1 - alpha) * (1 / 67 + 1 / 33) / 200)
    assert np.all(hits / rows > 1 - alpha - margin)
    assert np.all(hits / rows < 1 - alpha + 1 / 68 + margin)  # Lei et al. 2018


def test_sets_of_independent_labels_hold_presence_and_absence():
    logits, label = independent(2000)
    probability = sigmoid(logits)
    found = calibration.conformal(probability[:1000], label[:1000], 0.1)
    assert found.threshold.shape == found.pooled.shape == (3, 2) and not found.pooled.any()
    chosen = calibration.sets(probability[1000:], found.threshold)
    assert chosen.shape == (1000, 3, 2)
    held = np.take_along_axis(chosen, label[1000:, :, None], 2)[..., 0]
    for k in range(3):
        for value in (0, 1):
            share = held[label[1000:, k] == value, k]
            assert abs(share.mean() - 0.9) < 5 * math.sqrt(0.09 * 2 / len(share))


# --- calibration error ------------------------------------------------------------------------


def test_likelihood_and_brier_are_those_of_the_textbook():
    logits, label = calibrated(200, k=3)
    probability = softmax(logits)
    assert np.isclose(calibration.nll(probability, label), log_loss(label, probability))
    # Brier's own example form: (.7 − 1)² + .2² + .1² = .14
    assert np.isclose(calibration.brier(np.array([[0.7, 0.2, 0.1]]), np.array([0])), 0.14)
    logits, flags = independent(200)
    several = sigmoid(logits)
    each = [brier_score_loss(flags[:, k], several[:, k]) for k in range(3)]
    assert np.isclose(calibration.brier(several, flags), np.mean(each))
    each = [log_loss(flags[:, k], several[:, k]) for k in range(3)]
    assert np.isclose(calibration.nll(several, flags), np.mean(each))


def test_calibration_error_by_hand():
    # .62 and .64 share the bin (9/15, 10/15]; one of two is right. .9 is alone and right.
    probability = np.array([[0.62, 0.38], [0.36, 0.64], [0.9, 0.1]])
    label = np.array([0, 0, 0])
    expected = (2 * abs(0.63 - 0.5) + 0.1) / 3
    assert np.isclose(calibration.ece(probability, label), expected)
    bins = calibration.reliability(probability, label)
    assert np.allclose(bins.confidence, [0.63, 0.9]) and np.allclose(bins.accuracy, [0.5, 1])
    assert bins.rows.tolist() == [2, 1]
    # Three bins of equal mass: a row each.
    expected = (0.38 + 0.64 + 0.1) / 3
    assert np.isclose(calibration.ece(probability, label, bins=3, equal_mass=True), expected)


def test_bins_of_equal_mass_hold_as_many_rows():
    logits, label = calibrated(1500)
    bins = calibration.reliability(softmax(logits), label, equal_mass=True)
    assert bins.rows.tolist() == [100] * 15
    same = calibration.reliability(np.full((30, 2), 0.5), np.zeros(30, int), equal_mass=True)
    assert same.rows.tolist() == [30]  # equal confidences are never parted


def test_a_classwise_error_sees_what_the_top_label_hides():
    # Answers are right as often as stated; classes 1 and 2 are each off by .2.
    probability = np.tile([0.6, 0.4, 0.0], (10, 1))
    label = np.repeat([0, 1, 2], [6, 2, 2])
    assert np.isclose(calibration.ece(probability, label), 0)
    assert np.isclose(calibration.classwise_ece(probability, label), 0.4 / 3)
    flags = np.eye(3, dtype=int)[label]
    assert np.isclose(calibration.classwise_ece(probability, flags), 0.4 / 3)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_floor_is_the_error_of_labels_drawn_from_the_probabilities(equal_mass):
    rng = np.random.default_rng(5)
    probability = softmax(rng.normal(size=(400, 3)))
    direct = [
        calibration.ece(probability, drawn(probability, rng), equal_mass=equal_mass)
        for _ in range(400)
    ]
    floor = calibration.ece_floor(probability, 0, equal_mass=equal_mass)
    error = np.std(direct) * math.sqrt(1 / 400 + 1 / 200)
    assert abs(floor - np.mean(direct)) < 4 * error
    assert floor == calibration.ece_floor(probability, 0, equal_mass=equal_mass)
    assert floor != calibration.ece_floor(probability, 1, equal_mass=equal_mass)


def test_the_floor_of_independent_labels():
    rng = np.random.default_rng(6)
    probability = sigmoid(2 * rng.normal(size=(200, 3)))
    direct = [
        calibration.ece(probability, (rng.random((200, 3)) < probability).astype(int))
        for _ in range(400)
    ]
    floor = calibration.ece_floor(probability, 0, several=True)
    assert abs(floor - np.mean(direct)) < 4 * np.std(direct) * math.sqrt(1 / 400 + 1 / 200)


def test_answers_of_independent_labels_are_yes_or_no():
    confidence, right = calibration.answered(np.array([[0.9, 0.2]]), np.array([[0, 0]]))
    assert np.allclose(confidence, [0.9, 0.8]) and right.tolist() == [False, True]


GOOD = np.array([[0.6, 0.4], [0.3, 0.7]])


@pytest.mark.parametrize(
    ("probability", "label", "sentence"),
    [
        (np.empty((0, 2)), np.empty(0), "probability has rows and 2 or more columns"),
        (GOOD[:, 0], [0, 1], "probability has rows and 2 or more columns"),
        (GOOD * [np.nan, 1], [0, 1], "probability lies between 0 and 1"),
        (GOOD * 2, [0, 1], "probability lies between 0 and 1"),
        (GOOD / 2, [0, 1], "probability sums to 1"),
        (GOOD, [0, 1, 1], "label has one row a row of probability"),
        (GOOD, [0, 2], "label is a whole number from 0 to 1"),
        (GOOD, [0, np.nan], "label is a whole number from 0 to 1"),
        (GOOD, [[0, 1], [1, 2]], "label is a whole number from 0 to 1"),
    ],
)
def test_bad_probabilities_and_labels_are_named(probability, label, sentence):
    def conformal(probability, label):
        return calibration.conformal(probability, label, 0.1)

    for function in (calibration.temperature, calibration.ece, calibration.brier, conformal):
        with pytest.raises(UserError, match=sentence):
            function(probability, np.array(label))


def test_bad_settings_of_sets_are_named():
    with pytest.raises(UserError, match="alpha lies between 0 and 1; got 1"):
        calibration.conformal(GOOD, np.array([0, 1]), 1)
    with pytest.raises(UserError, match="threshold is for 2 classes, as probability; got 3"):
        calibration.sets(GOOD, np.zeros(3))


# --- declining --------------------------------------------------------------------------------


def test_risk_and_coverage_by_hand():
    confidence, wrong = np.array([0.5, 0.9, 0.7, 0.8]), np.array([1, 0, 1, 0])
    curve = decisions.risk_coverage(confidence, wrong)
    assert np.allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    assert np.allclose(curve.risk, [0, 0, 1 / 3, 1 / 2])
    assert np.isclose(decisions.aurc(confidence, wrong), (1 / 3 + 1 / 2) / 4)
    assert decisions.coverage_at(confidence, wrong, 0.9) == 0.5
    assert decisions.coverage_at(confidence, wrong, 0.5) == 1
    assert decisions.coverage_at(confidence, 1 - wrong, 0.95) == 0


def test_the_area_of_a_perfect_order_is_the_least_there_is():
    # Nine right before one wrong: the risk is 0 up to the last row, then .1.
    confidence, wrong = np.arange(10.0), np.arange(10) == 0
    assert np.isclose(decisions.aurc(confidence, wrong), 0.01)
    assert decisions.coverage_at(confidence, wrong, 0.9) == 1
    assert decisions.coverage_at(confidence, wrong, 0.95) == 0.9
    others = [decisions.aurc(confidence, np.roll(wrong, shift)) for shift in range(1, 10)]
    assert min(others) > 0.01


def test_equal_confidences_do_not_hang_on_the_order_of_rows():
    confidence, wrong = np.full(10, 0.8), np.arange(10) < 3
    for order in (wrong, wrong[::-1]):
        assert np.isclose(decisions.aurc(confidence, order), 0.3)
        assert decisions.coverage_at(confidence, order, 0.9) == 0  # no threshold parts them
    # Risk 0, 1/4, 1/3: three quarters are right only between the two that tie.
    assert decisions.coverage_at(np.array([0.9, 0.8, 0.8]), np.array([0, 0, 1]), 0.75) == 1 / 3


def test_an_accuracy_that_is_met_exactly_is_met():
    wrong = np.repeat([0, 1], [1, 4])  # 1 − 4/5 is a hair below 1/5
    assert decisions.coverage_at(-np.arange(5.0), wrong, 1 / 5) == 1


# --- operating points -------------------------------------------------------------------------

SCORE = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
PRESENT = np.array([0, 0, 1, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("target", "point"),
    [
        (0.5, (0.7, 0.5, 1.0)),
        (0.75, (0.6, 0.75, 1.0)),
        (0.76, (0.3, 1.0, 0.5)),
        (1.0, (0.3, 1.0, 0.5)),
    ],
)
def test_the_highest_threshold_that_keeps_a_sensitivity(target, point):
    assert decisions.operating_point(SCORE, PRESENT, sensitivity=target) == point


@pytest.mark.parametrize(
    ("cost", "point"),
    [
        (1.0, (0.6, 0.75, 1.0)),  # one miss against two false alarms
        (1.9, (0.6, 0.75, 1.0)),
        (2.0, (0.3, 1.0, 0.5)),  # as dear: the more sensitive
        (10.0, (0.3, 1.0, 0.5)),
    ],
)
def test_the_threshold_of_least_cost(cost, point):
    assert decisions.operating_point(SCORE, PRESENT, cost=cost) == point


def test_where_calling_nothing_is_cheapest_no_row_is_called():
    point = decisions.operating_point(SCORE, 1 - PRESENT, cost=0.1)
    assert point.threshold > 0.8 and math.isfinite(point.threshold)
    assert (point.sensitivity, point.specificity) == (0, 1)


def test_a_point_states_what_its_threshold_does():
    logits, flags = independent(300, k=2)
    probability = np.round(sigmoid(logits), 2)  # with ties
    for k in range(2):
        point = decisions.operating_point(probability[:, k], flags[:, k], sensitivity=0.9)
        called, present = probability[:, k] >= point.threshold, flags[:, k] == 1
        assert np.isclose(point.sensitivity, called[present].mean()) and point.sensitivity >= 0.9
        assert np.isclose(point.specificity, 1 - called[~present].mean())
        higher = probability[:, k] > point.threshold
        assert higher[present].mean() < 0.9


@pytest.mark.parametrize(
    ("score", "present", "options", "sentence"),
    [
        (SCORE, 0 * PRESENT, {"cost": 1}, "label needs .* there is no positive row"),
        (SCORE, 0 * PRESENT + 1, {"cost": 1}, "label needs .* there is no negative row"),
        (SCORE, PRESENT, {}, "by sensitivity or by cost, one of them"),
        (SCORE, PRESENT, {"cost": 1, "sensitivity": 0.9}, "by sensitivity or by cost"),
        (SCORE, PRESENT, {"sensitivity": 1.1}, "sensitivity is above 0 and at most 1; got 1.1"),
        (SCORE, PRESENT, {"cost": math.nan}, "cost is a number above 0; got nan"),
        (SCORE * np.nan, PRESENT, {"cost": 1}, "score is a number in every row"),
        (SCORE, PRESENT[:4], {"cost": 1}, "label has as many rows as score, 8"),
        (SCORE, PRESENT * 2, {"cost": 1}, "label is 0 or 1 in every row"),
        (SCORE[:0], PRESENT[:0], {"cost": 1}, "score has one number a row"),
    ],
)
def test_bad_operating_points_are_named(score, present, options, sentence):
    with pytest.raises(UserError, match=sentence):
        decisions.operating_point(score, present, **options)


def test_bad_confidences_are_named():
    with pytest.raises(UserError, match="confidence is a number in every row"):
        decisions.aurc(np.array([0.5, np.nan]), np.array([0, 1]))
    with pytest.raises(UserError, match="wrong is 0 or 1 in every row"):
        decisions.aurc(np.array([0.5, 0.6]), np.array([0, np.nan]))


# --- intervals --------------------------------------------------------------------------------


def test_a_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = intervals.bootstrap(np.mean, rng.normal(size=60), draws=300, level=0.9, seed=seed)
        hits += found.low <= 0 <= found.high
    low, high = stats.binom.interval(0.999, 200, 0.88)  # percentiles of 60 rows are a bit narrow
    assert low <= hits <= high


def test_an_interval_is_as_wide_as_theory_says_and_repeats_with_its_seed():
    values = np.random.default_rng(1).normal(size=400)
    found = intervals.bootstrap(np.mean, values, draws=4000)
    assert found.value == values.mean()
    assert abs((found.high - found.low) / (2 * 1.96 * values.std() / 20) - 1) < 0.06
    assert intervals.bootstrap(np.mean, values, seed=1) == intervals.bootstrap(
        np.mean, values, seed=1
    )
    assert intervals.bootstrap(np.mean, values, seed=1) != intervals.bootstrap(
        np.mean, values, seed=2
    )


def test_strata_keep_their_numbers_of_rows():
    label = np.repeat([0, 1], [97, 3])
    seen = []
    intervals.bootstrap(lambda y: seen.append(y.sum()) or 0.0, label, strata=label, draws=50)
    assert set(seen) == {3}


def test_groups_are_drawn_whole_and_widen_the_interval():
    rng = np.random.default_rng(2)
    patient = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 9, 40)))
    size = np.bincount(patient)

    def whole(who):
        times = np.bincount(who, minlength=40)
        assert np.all(times % size == 0) and (times // size).sum() == 40
        return 0.0

    intervals.bootstrap(whole, patient, groups=patient, draws=50)
    value = rng.normal(size=40)[patient]  # the same for all rows of a patient
    alone = intervals.bootstrap(np.mean, value)
    together = intervals.bootstrap(np.mean, value, groups=np.char.add("p", patient.astype(str)))
    assert together.value == alone.value
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_patient_with_any_positive_row_is_positive():
    patient, label = np.repeat(np.arange(20), 2), np.zeros(40, int)
    label[:10:2] = 1  # five patients with one positive row each
    seen = []
    intervals.bootstrap(
        lambda y: seen.append(y.sum()) or 0.0, label, strata=label, groups=patient, draws=50
    )
    assert set(seen) == {5}


def test_several_metrics_share_their_draws_and_one_without_a_value_has_no_interval():
    rng = np.random.default_rng(3)
    flag = rng.random(300) < 0.6
    score = np.round(flag + rng.normal(size=300), 1)  # with ties

    def metrics(score, flag):
        return {"auc": roc_auc_score(flag, score), "mean": score.mean(), "none": math.nan}

    found = intervals.bootstraps(metrics, score, flag, strata=flag, draws=100)
    alone = intervals.bootstrap(
        lambda s, y: roc_auc_score(y, s), score, flag, strata=flag, draws=100
    )
    assert found["auc"] == alone
    assert set(found) == {"auc", "mean"}


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    found = intervals.proportion(3, 50)
    assert np.isclose(found.low, stats.beta.ppf(0.025, 3, 48))
    assert np.isclose(found.high, stats.beta.ppf(0.975, 4, 47))
    none = intervals.proportion(0, 50)
    assert (none.value, none.low) == (0, 0) and np.isclose(none.high, 1 - 0.025 ** (1 / 50))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: intervals.bootstrap(np.mean, np.empty(0)), "at least one row"),
        (lambda: intervals.bootstrap(np.mean), "at least one row"),
        (
            lambda: intervals.bootstrap(np.dot, np.ones(3), np.ones(2)),
            "column 1 has as many rows as column 0, 3; got 2",
        ),
        (lambda: intervals.bootstrap(np.mean, np.array([1, np.nan])), "column 0 holds missing"),
        (
            lambda: intervals.bootstrap(
                np.mean, np.ones(2), groups=np.array(["a", None], dtype=object)
            ),
            "groups holds missing",
        ),
        (
            lambda: intervals.bootstrap(
                lambda x: 1.0 if 0 in x and 1 in x and 2 in x else math.nan, np.arange(3)
            ),
            "give strata, or more rows",
        ),
        (lambda: intervals.proportion(0, 0), "at least one row"),
    ],
)
def test_bad_rows_of_an_interval_are_named(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
