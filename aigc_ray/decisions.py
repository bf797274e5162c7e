"""Where the line is drawn: which rows are answered at all, and from where on a finding is called.

Every function raises `UserError`, in one sentence that names the argument, for arrays that are
empty, do not fit or hold NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from aigc_ray.errors import UserError

# --- answering the surest rows only -----------------------------------------------------------


class RiskCoverage(NamedTuple):
    """What is wrong among the surest rows, (N,) each, from the surest row alone to all rows."""

    coverage: np.ndarray  # share of rows that are answered
    risk: np.ndarray  # share of those answers that are wrong


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> RiskCoverage:
    """The curve of a recogniser that may decline (El-Yaniv and Wiener 2010).

    Rows of one confidence cannot be told apart, so each of them is as wrong as their mean.

    Args:
        confidence: (N,); anything that rises with trust.
        wrong: (N,) of 0 and 1.
    """
    return _risk_coverage(*_by_confidence(confidence, wrong))


def aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the risk-coverage curve, the mean risk over coverages (Geifman et al. 2019).

    The share of wrong answers if confidence says nothing; less if it knows the wrong from the
    right.
    """
    return float(risk_coverage(confidence, wrong).risk.mean())


def coverage_at(confidence: np.ndarray, wrong: np.ndarray, accuracy: float) -> float:
    """The largest share of rows that can be answered at this accuracy or better; 0 if none can."""
    surest, lost = _by_confidence(confidence, wrong)
    coverage, risk = _risk_coverage(surest, lost)
    last = np.append(surest[1:] < surest[:-1], True)  # a threshold takes all equals or none
    reached = coverage[last & (1 - risk >= accuracy - 1e-9)]
    return float(reached.max(initial=0.0))


def _by_confidence(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, the surest row first."""
    confidence, wrong = _numbers("confidence", confidence), np.asarray(wrong)
    _same_rows("wrong", wrong, "confidence", confidence)
    order = np.argsort(-confidence, kind="stable")
    return confidence[order], wrong[order].astype(np.float64)


def _risk_coverage(surest: np.ndarray, wrong: np.ndarray) -> RiskCoverage:
    tie = np.cumsum(np.append(0, surest[1:] < surest[:-1]))
    wrong = (np.bincount(tie, wrong) / np.bincount(tie))[tie]
    answered = np.arange(1, len(wrong) + 1)
    return RiskCoverage(answered / len(wrong), np.cumsum(wrong) / answered)


# --- calling a finding ------------------------------------------------------------------------


class OperatingPoint(NamedTuple):
    """A finding is called where its probability is at least the threshold."""

    threshold: float
    sensitivity: float  # on the rows that it was chosen on
    specificity: float


def operating_point(
    score: np.ndarray,
    present: np.ndarray,
    *,
    sensitivity: float | None = None,
    cost: float | None = None,
    name: str = "label",
) -> OperatingPoint:
    """The threshold for one finding, chosen on held-back rows.

    Args:
        score: (N,) probability of the finding.
        present: (N,) of 0 and 1.
        sensitivity: take the highest threshold that keeps at least this share of the positives.
        cost: or the one with the least expected cost, a miss being so many times as dear as a
            false alarm; of several, the most sensitive. It holds for the share of positives in
            these rows. Where calling nothing is cheapest, the threshold is above every score.
        name: of the field, for errors.
    """
    from sklearn.metrics import roc_curve

    score, present = _numbers("score", score), np.asarray(present)
    _same_rows(name, present, "score", score)
    positives = int(present.sum())
    negatives = len(present) - positives
    if not positives or not negatives:
        held = "positive" if not positives else "negative"
        raise UserError(f"{name} needs positive and negative rows; there is no {held} row")
    if (sensitivity is None) == (cost is None):
        raise UserError("an operating point is chosen by sensitivity or by cost, one of them")
    # From no row called to all rows called.
    alarms, found, thresholds = roc_curve(present, score, drop_intermediate=False)
    if sensitivity is not None:
        if not 0 < sensitivity <= 1:
            raise UserError(f"sensitivity is above 0 and at most 1; got {sensitivity}")
        best = int(np.argmax(found >= sensitivity))
    else:
        assert cost is not None
        if not 0 < cost < math.inf:
            raise UserError(f"cost is a number above 0; got {cost}")
        total = cost * np.round((1 - found) * positives) + np.round(alarms * negatives)
        best = int(np.flatnonzero(total <= total.min() * (1 + 1e-12))[-1])
    # roc_curve says infinity for "none", which JSON cannot.
    threshold = min(thresholds[best], np.nextafter(score.max(), np.inf))
    return OperatingPoint(float(threshold), float(found[best]), float(1 - alarms[best]))


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{name} has one number a row; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise UserError(f"{name} is a number in every row; it holds NaN or infinity")
    return values


def _same_rows(name: str, flags: np.ndarray, other: str, values: np.ndarray) -> None:
    if flags.shape != values.shape:
        raise UserError(f"{name} has as many rows as {other}, {len(values)}; got {flags.shape}")
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"{name} is 0 or 1 in every row; it holds another number or NaN")
