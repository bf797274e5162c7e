"""An answer is as sure as it may be, or withheld; the critic is heard where it does no harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from aigc_ray import judgement
from aigc_ray.errors import UserError
from aigc_ray.judgement import Judgement, Policy
from aigc_ray.outliers import NAMES, Outliers

CLASSES = ("normal", "pneumonia")


def opinion(n: int, skill: float, seed: int, sharpness: float = 1.0, classes: int = 2):
    """(N, K) probabilities of a recogniser that is right as often as it says, if sharpness is 1."""
    rng = np.random.default_rng(seed)
    logits = skill * rng.normal(size=(n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=classes - 1)
    sharp = p**sharpness
    return sharp / sharp.sum(1, keepdims=True), label


def halved(n: int) -> np.ndarray:
    return np.arange(n) % 2 == 0


def fitted(n: int = 2000, sharpness: float = 3.0, **more) -> Judgement:
    probability, label = opinion(n, 2.0, 0, sharpness)
    return judgement.fit({"recogniser": probability}, label, halved(n), CLASSES, Policy(**more))


def test_an_overconfident_recogniser_is_made_to_say_what_it_knows():
    made = fitted()
    assert made.temperature == pytest.approx(3, rel=0.15)
    sharp, _ = opinion(500, 2.0, 1, 3.0)
    true, _ = opinion(500, 2.0, 1, 1.0)
    assert np.abs(made.probability(sharp, None) - true).mean() < 0.03


def test_a_modest_recogniser_is_made_to_say_what_it_knows():
    assert fitted(sharpness=0.3).temperature == pytest.approx(0.3, rel=0.15)
    assert fitted(60, sharpness=0.8).temperature == 1  # too few rows to be surer of


def test_no_answer_is_surer_than_it_will_be_elsewhere():
    here, label = opinion(2000, 2.0, 0, 1.0)
    there, _ = opinion(2000, 2.0, 7, 2.0)  # of other rows: surer, and wrong
    made = judgement.fit(
        {"recogniser": here},
        label,
        halved(2000),
        CLASSES,
        Policy(),
        elsewhere={"recogniser": there},
    )
    assert made.temperature > 2


def test_the_temperature_is_that_of_all_rows_of_both_halves():
    label, half = opinion(2000, 2.0, 0)[1], halved(2000)
    sharp, true = (opinion(2000, 2.0, 0, sharpness)[0] for sharpness in (4.0, 1.0))
    uneven = np.where(half[:, None], true, sharp)
    made = judgement.fit({"recogniser": uneven}, label, half, CLASSES, Policy())
    of_one = judgement.fit({"recogniser": true}, label, half, CLASSES, Policy()).temperature
    of_other = judgement.fit({"recogniser": sharp}, label, half, CLASSES, Policy()).temperature
    assert of_one + 0.5 < made.temperature < of_other - 0.5
    assert made.rows["temperature"] == 2000


def test_sets_miss_the_truth_as_often_as_they_may():
    made = fitted(alpha=0.2)
    probability, label = opinion(4000, 2.0, 1, 3.0)
    said = [made.verdict(p, None) for p in made.probability(probability, None)]
    missed = np.mean([CLASSES[y] not in one["set"] for one, y in zip(said, label, strict=True)])
    assert missed == pytest.approx(0.2, abs=0.04)


def test_what_cannot_be_told_apart_is_not_answered_and_says_between_what():
    made = fitted()
    unsure, sure = (made.verdict(np.array(p), None) for p in ([0.5, 0.5], [0.01, 0.99]))
    assert unsure["abstained"] and unsure["reason"] == (
        "it cannot be told between normal and pneumonia"
    )
    assert not sure["abstained"] and sure["reason"] is None and sure["set"] == ["pneumonia"]


def test_an_unusual_row_is_not_answered_however_sure_the_recogniser_is():
    n = 400
    probability, label = opinion(n, 3.0, 0)
    score = np.random.default_rng(0).random(n)
    made = judgement.fit(
        {"recogniser": probability}, label, halved(n), CLASSES, Policy(), outlier=score
    )
    assert made.unusual == pytest.approx(0.99, abs=0.02)
    said = made.verdict(np.array([0.001, 0.999]), 1.0)
    assert said["abstained"] and "out of distribution" in said["reason"]
    assert "findings" not in said and said["outlier"] == 1.0
    assert not made.verdict(np.array([0.001, 0.999]), 0.5)["abstained"]


def test_a_finding_is_called_at_the_sensitivity_that_was_asked_for():
    made = fitted(sensitivity=0.9)
    (point,) = made.points.values()
    assert list(made.points) == ["pneumonia"] and point["sensitivity"] >= 0.9
    probability, label = opinion(4000, 2.0, 1, 3.0)
    said = [made.verdict(p, None) for p in made.probability(probability, None)]
    called = np.array([one["findings"]["pneumonia"]["called"] for one in said])
    assert called[label == 1].mean() == pytest.approx(0.9, abs=0.03)
    dear, cheap = (fitted(cost=cost).points["pneumonia"]["threshold"] for cost in (20.0, 0.5))
    assert dear < cheap


def test_a_critic_that_knows_something_is_heard_and_one_that_guesses_is_not():
    n = 1200
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, n)

    def noisy(seed: int, noise: float) -> np.ndarray:
        z = (2 * label - 1) + noise * np.random.default_rng(seed).normal(size=n)
        p = 1 / (1 + np.exp(-2 * z))
        return np.stack([1 - p, p], 1)

    good = {"recogniser": noisy(1, 1.0), "critic": noisy(2, 1.0)}
    bad = {"recogniser": noisy(1, 1.0), "critic": noisy(2, 30.0)}
    heard, unheard = (
        judgement.fit(one, label, halved(n), CLASSES, Policy()) for one in (good, bad)
    )
    assert heard.share == 0.5 and heard.gain is not None and heard.gain["low"] > 0
    assert unheard.share == 0.0 and unheard.gain is not None and unheard.gain["low"] < -0.002
    # Where all are right as they are, what the critic is worth shows on the rows perturbed.
    easy = {"recogniser": noisy(1, 0.1), "critic": noisy(2, 0.1)}
    for there, share in ((good, 0.5), (bad, 0.0)):
        made = judgement.fit(easy, label, halved(n), CLASSES, Policy(), elsewhere=there)
        assert made.share == share
    mixed = heard.probability(good["recogniser"], good["critic"])
    assert not np.allclose(mixed, unheard.probability(good["recogniser"], good["critic"]))


def test_of_several_labels_the_unsure_ones_are_undecided():
    rng = np.random.default_rng(0)
    p = rng.random((1000, 3))
    flags = (rng.random((1000, 3)) < p).astype(int)
    made = judgement.fit({"recogniser": p}, flags, halved(1000), ("a", "b", "c"), Policy())
    said = made.verdict(np.array([0.02, 0.5, 0.98]), None)
    assert said["undecided"] == ["b"] and not said["abstained"]
    assert made.verdict(np.array([0.5, 0.5, 0.5]), None)["reason"] == "every label is undecided"
    assert set(made.points) == {"a", "b", "c"}


def test_a_judgement_passes_through_json_unchanged():
    made = fitted()
    again = Judgement.from_json(json.loads(json.dumps(made.to_json())))
    assert again.verdict(np.array([0.3, 0.7]), None) == made.verdict(np.array([0.3, 0.7]), None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": 0}, "alpha lies between 0 and 1; got 0"),
        ({"cost": -1}, "cost is above 0; got -1"),
        ({"sensitivity": 2}, "sensitivity is above 0 and at most 1; got 2"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Policy(**settings)


def test_a_finding_that_is_no_class_and_a_split_without_halves_are_refused():
    with pytest.raises(UserError, match="positive is one of normal, pneumonia; got 'flu'"):
        fitted(positive="flu")
    probability, label = opinion(20, 2.0, 0)
    with pytest.raises(UserError, match="too small to be halved"):
        judgement.fit({"recogniser": probability}, label, label < 9, CLASSES, Policy())


# --- what is unusual --------------------------------------------------------------------------


def clouds(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two long clouds in eight dimensions, and which a row is of."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, 8)) * np.array([4, 1, 1, 1, 1, 1, 1, 0.1])
    rows[:, 1] += 10 * label
    return torch.from_numpy(rows).float(), torch.from_numpy(label)


def test_rows_beside_the_clouds_are_stranger_than_any_within():
    train, label = clouds(600, 0)
    made = Outliers.fit([train], label, [clouds(400, 1)[0]])
    usual = made.score([clouds(400, 2)[0]])
    assert usual.mean() < 0.75 and (usual > 0.99).float().mean() < 0.04
    beside = clouds(100, 3)[0]
    beside[:, 7] += 12  # along an axis on which rows hardly differ
    between = torch.zeros(1, 8)
    between[0, 1] = 5  # the mean of all rows lies in neither cloud
    assert made.score([beside]).mean() > 0.85
    blind = Outliers.fit([train], None, [clouds(400, 1)[0]])
    assert made.score([between])[0] > blind.score([between])[0]


def test_other_held_back_rows_give_other_ranks_and_what_is_stored_is_what_is_read():
    train, label = clouds(300, 0)
    made = Outliers.fit([train, train[:, :2]], label, [clouds(200, 1)[0], clouds(200, 1)[0][:, :2]])
    far = [rows := clouds(200, 2)[0] + 3, rows[:, :2]]
    assert made.score(far).mean() > 0.9
    assert made.again(far).score(far).mean() < 0.85
    state = made.state()
    assert set(state) == {f"{n}.{name}" for n in (0, 1) for name in NAMES}
    assert torch.equal(Outliers.load(state).score(far), made.score(far))


def test_a_row_that_is_strange_in_one_space_is_strange():
    train, label = clouds(600, 0)
    spaces = [train, train[:, :2]]
    held_back = clouds(400, 1)[0]
    made = Outliers.fit(spaces, label, [held_back, held_back[:, :2]])
    usual = clouds(100, 2)[0]
    assert made.score([usual, usual[:, :2]]).mean() < 0.85
    assert made.score([usual, usual[:, :2] + 40]).min() > 0.99
