"""Answers that mean what they say, or are withheld.

A probability (N, K) is either of one out of K classes, with label (N,) whole numbers, or of K
labels that hold or not independently of each other, with label (N, K) of 0 and 1. Where there is
no label to tell the two apart, `several=True` means the second. Every function raises `UserError`,
in one sentence that names the argument, for arrays that are empty, do not fit or hold NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from aigc_ray.errors import UserError

TINY = 1e-12  # probabilities of 0 and 1 are taken for this and 1 − this where a logarithm is due
COLDEST, HOTTEST = 0.05, 20.0  # temperatures
SIGNIFICANT = 10.83  # of a chi-squared with one degree of freedom, exceeded in .1 % by chance
BINS = 15  # as in Guo et al. 2017


# --- temperature ------------------------------------------------------------------------------


def temperature(probability: np.ndarray, label: np.ndarray) -> float:
    """The temperature that makes probabilities of held-back rows likeliest (Guo et al. 2017).

    Logarithms of the probabilities stand for the logits (for independent labels, one logit each),
    so an ensemble's mean is served too. It is 1 where no answer is wrong: the likelihood then has
    no maximum, and would ask for ever more confidence.
    """
    from scipy.optimize import minimize_scalar

    probability, label = _checked(probability, label)
    logits = _logits(probability, label.ndim == 2)
    if label.ndim == 2:
        right = logits * (2 * label - 1) >= 0
    else:
        right = _of_truth(logits, label) >= logits.max(1)
    if right.all():
        return 1.0
    # NLL is convex in 1/T, so it has one minimum in log T too.
    found = minimize_scalar(
        lambda log_t: _cross_entropy(logits / math.exp(log_t), label),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
    )
    return math.exp(found.x)


def cautious_temperature(probability: np.ndarray, label: np.ndarray) -> float:
    """The likeliest temperature; but to sound surer than the networks do must be beyond doubt, by a
    likelihood ratio that is significant at .1 % (Wilks 1938): too much confidence does harm."""
    found = temperature(probability, label)
    if found >= 1:
        return found
    surer = apply(probability, found, label.ndim == 2)
    gain = nll(probability, label) - nll(surer, label)
    return found if 2 * len(label) * gain > SIGNIFICANT else 1.0


def apply(probability: np.ndarray, temperature: float, several: bool = False) -> np.ndarray:
    """Probabilities (N, K) at this temperature: above 1 less sure, below 1 surer."""
    logits = _logits(_probabilities(probability, several), several) / temperature
    if several:
        return 1 / (1 + np.exp(-logits))
    power = np.exp(logits - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


# --- sets instead of answers ------------------------------------------------------------------


class Conformal(NamedTuple):
    """What a class's probability must reach for the class to be in an answer's set."""

    threshold: np.ndarray  # (K,); (K, 2), for absent and present, where labels are independent
    pooled: np.ndarray  # bool, the same shape: taken from all classes' rows, having too few


def conformal(probability: np.ndarray, label: np.ndarray, alpha: float) -> Conformal:
    """Thresholds by which a set misses the truth in at most a share alpha of new rows.

    Least ambiguous sets (LAC; Sadinle, Lei and Wasserman 2019) from held-back rows that training,
    choice and temperature have not seen. The promise holds within each class that has
    ceil(1/alpha) − 1 rows or more (Mondrian; Vovk 2005), and over all rows together for classes
    that have fewer; where even all rows are too few, the threshold is 0 and each set holds all.
    """
    probability, label = _checked(probability, label)
    if not 0 < alpha < 1:
        raise UserError(f"alpha lies between 0 and 1; got {alpha}")
    if label.ndim == 2:
        both = _absent_present(probability)
        each = [conformal(both[:, k], label[:, k], alpha) for k in range(label.shape[1])]
        return Conformal(np.stack([c.threshold for c in each]), np.stack([c.pooled for c in each]))
    truth = _of_truth(probability, label)
    counts = np.bincount(label, minlength=probability.shape[1])
    pooled = counts < math.ceil(1 / alpha - 1e-9) - 1
    everyone = _reached(truth, alpha)
    threshold = np.array(
        [everyone if pooled[k] else _reached(truth[label == k], alpha) for k in range(len(counts))]
    )
    return Conformal(threshold, pooled)


def sets(probability: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """bool (N, K): the classes an answer cannot rule out; (N, K, 2) for thresholds (K, 2).

    One member is an answer; several, or none (a row unlike those that were held back), are not.
    """
    several = threshold.ndim == 2
    probability = _probabilities(probability, several)
    if len(threshold) != probability.shape[1]:
        raise UserError(
            f"threshold is for {probability.shape[1]} classes, as probability; got {len(threshold)}"
        )
    return (_absent_present(probability) if several else probability) >= threshold


def _reached(truth: np.ndarray, alpha: float) -> float:
    """What a share ceil((n + 1)(1 − alpha))/n of the true classes' probabilities reaches."""
    n = len(truth)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)  # 1e-9: 27.000000000000004 is 27
    return float(np.sort(truth)[n - rank]) if rank <= n else 0.0


def _absent_present(probability: np.ndarray) -> np.ndarray:
    return np.stack([1 - probability, probability], -1)  # (N, K, 2)


# --- how far probabilities are from frequencies -----------------------------------------------


def nll(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats: a row, or a row and label where they are several."""
    probability, label = _checked(probability, label)
    return _cross_entropy(_logits(probability, label.ndim == 2), label)


def brier(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean squared error, summed over classes as Brier 1950 defines it: 0 to 2.

    With two classes that is twice what the one-sided form of most libraries gives. For independent
    labels it is that one-sided form, (p − y)², a mean over rows and labels: 0 to 1.
    """
    probability, label = _checked(probability, label)
    squared = (probability - _flags(probability, label)) ** 2
    return float(squared.mean() if label.ndim == 2 else squared.sum(1).mean())


def answered(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, right): the answer's probability, and whether it is true.

    (N,) each, of the likeliest class; where labels are independent (N·K,), of each label's yes at
    one half or more, else its no.
    """
    probability, label = _checked(probability, label)
    if label.ndim == 2:
        return _confidence(probability, True), ((probability >= 0.5) == (label == 1)).ravel()
    return _confidence(probability, False), probability.argmax(1) == label


class Reliability(NamedTuple):
    """A reliability diagram, the bins that hold rows: (B,) each."""

    confidence: np.ndarray  # mean in the bin
    accuracy: np.ndarray
    rows: np.ndarray  # how many answers it holds


def reliability(
    probability: np.ndarray, label: np.ndarray, bins: int = BINS, equal_mass: bool = False
) -> Reliability:
    """How often answers of each confidence are right; by bins of equal width or of equal count."""
    return _binned(*answered(probability, label), bins, equal_mass)


def ece(
    probability: np.ndarray, label: np.ndarray, bins: int = BINS, equal_mass: bool = False
) -> float:
    """Expected calibration error of the answers (Naeini 2015; Guo et al. 2017), 0 to 1.

    It is never 0 on finitely many rows: compare it with `ece_floor`.
    """
    return _gap(reliability(probability, label, bins, equal_mass))


def classwise_ece(
    probability: np.ndarray, label: np.ndarray, bins: int = BINS, equal_mass: bool = False
) -> float:
    """The same of each class's own probability, a mean over classes (Kull et al. 2019)."""
    probability, label = _checked(probability, label)
    pairs = zip(probability.T, _flags(probability, label).T, strict=True)
    return float(np.mean([_gap(_binned(p, flag, bins, equal_mass)) for p, flag in pairs]))


def ece_floor(
    probability: np.ndarray,
    seed: int,
    several: bool = False,
    bins: int = BINS,
    equal_mass: bool = False,
    draws: int = 200,
) -> float:
    """The mean ECE if these probabilities (N, K) were exactly right, on as many rows.

    By labels drawn from them (Bröcker and Smith 2007): an answer is right with the probability
    that it states, so only that is drawn.
    """
    confidence = _confidence(_probabilities(probability, several), several)
    place = _places(confidence, bins, equal_mass)
    stated = np.bincount(place, confidence)
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        right = np.bincount(place, generator.random(len(confidence)) < confidence)
        total += np.abs(right - stated).sum()
    return float(total / draws / len(confidence))


def _confidence(probability: np.ndarray, several: bool) -> np.ndarray:
    return np.maximum(probability, 1 - probability).ravel() if several else probability.max(1)


def _places(confidence: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    """Each row's bin. Bins are open below and closed above; equal confidences share one."""
    shares = np.arange(1, bins) / bins
    edges = np.quantile(confidence, shares, method="inverted_cdf") if equal_mass else shares
    return np.searchsorted(edges, confidence, side="left")


def _binned(confidence: np.ndarray, right: np.ndarray, bins: int, equal_mass: bool) -> Reliability:
    place = _places(confidence, bins, equal_mass)
    rows = np.bincount(place)
    filled = rows > 0
    sums = (np.bincount(place, values)[filled] for values in (confidence, right))
    stated, found = (total / rows[filled] for total in sums)
    return Reliability(stated, found, rows[filled])


def _gap(bins: Reliability) -> float:
    gaps = np.abs(bins.confidence - bins.accuracy)
    return float((bins.rows * gaps).sum() / bins.rows.sum())


# --- what both stand on -----------------------------------------------------------------------


def _probabilities(probability: np.ndarray, several: bool) -> np.ndarray:
    probability = np.asarray(probability, np.float64)
    least = 1 if several else 2
    if probability.ndim != 2 or not len(probability) or probability.shape[1] < least:
        raise UserError(
            f"probability has rows and {least} or more columns; got shape {probability.shape}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():  # False for NaN too
        raise UserError("probability lies between 0 and 1; it holds another number or NaN")
    if not several and np.abs(probability.sum(1) - 1).max() > 1e-3:
        raise UserError(
            "probability sums to 1 over classes; labels that are independent need "
            "label (N, K), or several=True"
        )
    return probability


def _checked(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 and int64, once they are known to fit."""
    label = np.asarray(label)
    probability = _probabilities(probability, label.ndim == 2)
    if label.shape not in (probability.shape, probability.shape[:1]):
        raise UserError(
            f"label has one row a row of probability, {probability.shape}; got {label.shape}"
        )
    most = 1 if label.ndim == 2 else probability.shape[1] - 1
    if not np.isin(label, np.arange(most + 1)).all():
        raise UserError(f"label is a whole number from 0 to {most}; it holds another or NaN")
    return probability, label.astype(np.int64)


def _flags(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    return label if label.ndim == 2 else np.eye(probability.shape[1])[label]


def _of_truth(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    return values[np.arange(len(label)), label]


def _logits(probability: np.ndarray, several: bool) -> np.ndarray:
    likely = np.log(np.maximum(probability, TINY))
    return likely - np.log(np.maximum(1 - probability, TINY)) if several else likely


def _cross_entropy(logits: np.ndarray, label: np.ndarray) -> float:
    if label.ndim == 2:
        return float(np.logaddexp(0, logits * (1 - 2 * label)).mean())
    return float((np.logaddexp.reduce(logits, axis=1) - _of_truth(logits, label)).mean())
