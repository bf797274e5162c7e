"""How well classes or labels are recognised, as figures and as pictures.

A probability (N, K) is of one out of K classes, with label (N,) whole numbers, or of K labels that
hold or not independently, with label (N, K) of 0 and 1.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from aigc_ray import calibration, decisions


def figures(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """AUC, accuracy, balanced accuracy, sensitivity and specificity; NaN where a class is absent.

    AUC and accuracy as MedMNIST computes them (Yang et al. 2023): AUC is the mean over classes of
    one against the rest, accuracy over several labels the mean over labels at one half.
    Sensitivity and specificity are those of the second of two classes, else means over classes or
    labels of one against the rest. Balanced accuracy is the mean over classes of the share that is
    recognised (over labels: of sensitivity's and specificity's mean).
    """
    flags, likely = flags_of(label, probability.shape[1]), probability
    if label.ndim == 1:
        called = np.eye(probability.shape[1])[probability.argmax(1)] > 0.5
        if probability.shape[1] == 2:
            flags, likely, called = flags[:, 1:], probability[:, 1:], probability[:, 1:] >= 0.5
            accuracy = np.mean(called[:, 0] == (label == 1))
        else:
            accuracy = np.mean(probability.argmax(1) == label)
    else:
        called = probability >= 0.5
        accuracy = np.mean(called == (flags > 0.5))
    found = np.array([_share(c[f > 0.5]) for c, f in zip(called.T, flags.T, strict=True)])
    spared = np.array([_share(~c[f < 0.5]) for c, f in zip(called.T, flags.T, strict=True)])
    one_of_many = label.ndim == 1 and probability.shape[1] > 2
    return {
        "auc": _mean([auc(p, f) for p, f in zip(likely.T, flags.T, strict=True)]),
        "acc": float(accuracy),
        "balanced_acc": _mean(found if one_of_many else (found + spared) / 2),
        "sensitivity": _mean(found),
        "specificity": _mean(spared),
    }


def honesty(probability: np.ndarray, label: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How far the probabilities can be believed.

    NLL, Brier score, ECE beside what a calibrated model would show on as many rows, the area under
    risk against coverage, and the share of rows that can be answered with 95 % of them right.
    """
    confidence, right = calibration.answered(probability, label)
    return {
        "nll": calibration.nll(probability, label),
        "brier": calibration.brier(probability, label),
        "ece": calibration.ece(probability, label),
        "ece_floor": calibration.ece_floor(probability, seed, several=label.ndim == 2),
        "classwise_ece": calibration.classwise_ece(probability, label),
        "aurc": decisions.aurc(confidence, ~right),
        "coverage_at_95": decisions.coverage_at(confidence, ~right, 0.95),
    }


def auc(score: np.ndarray, flag: np.ndarray) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney 1947); NaN with one class only."""
    from scipy.stats import rankdata

    positive = flag > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def flags_of(label: np.ndarray, classes: int) -> np.ndarray:
    """(N, K) of 0 and 1."""
    return label if label.ndim == 2 else np.eye(classes)[label.astype(int)]


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _mean(values: Any) -> float:
    """The mean over the classes that there are."""
    values = np.asarray(values, float)
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


# --- pictures ---------------------------------------------------------------------------------


def pictures(
    probability: np.ndarray, label: np.ndarray, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """ROC curves, the confusion matrix of classes, reliability, and risk against coverage."""
    yield "ROC curves", _roc(probability, label, names)
    if label.ndim == 1:
        yield "Confusion matrix", _confusion(probability, label, names)
    yield (
        "Reliability: how often answers of each confidence are right",
        _reliable(probability, label),
    )
    yield "Risk against coverage: what is wrong among the surest answers", _risk(probability, label)


def _roc(probability: np.ndarray, label: np.ndarray, names: tuple[str, ...]) -> bytes:
    from sklearn.metrics import roc_curve

    figure, axes = _axes()
    flags = flags_of(label, len(names))
    for number, name in enumerate(names):
        if len(names) == 2 and number == 0 and label.ndim == 1:
            continue  # the mirror image of the other class's curve
        if 0 < flags[:, number].sum() < len(flags):
            x, y, _ = roc_curve(flags[:, number], probability[:, number])
            area = auc(probability[:, number], flags[:, number])
            axes.plot(x, y, label=f"{name}: AUC {area:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right", fontsize=8)
    return png(figure)


def _confusion(probability: np.ndarray, label: np.ndarray, names: tuple[str, ...]) -> bytes:
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(label, probability.argmax(1), labels=range(len(names)))
    figure, axes = _axes()
    axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axes.text(column, row, count, ha="center", color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="recognised", ylabel="true")
    return png(figure)


def _reliable(probability: np.ndarray, label: np.ndarray) -> bytes:
    bins = calibration.reliability(probability, label)
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.scatter(bins.confidence, bins.accuracy, s=10 + 290 * bins.rows / bins.rows.max())
    axes.set(xlabel="confidence", ylabel="share that is right", aspect="equal")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    return png(figure)


def _risk(probability: np.ndarray, label: np.ndarray) -> bytes:
    confidence, right = calibration.answered(probability, label)
    curve = decisions.risk_coverage(confidence, ~right)
    figure, axes = _axes()
    axes.plot(curve.coverage, curve.risk)
    axes.set(xlabel="share that is answered", ylabel="share of these that is wrong", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    return png(figure)


def _axes() -> tuple[Any, Any]:
    """An empty drawing; matplotlib, without a screen, is imported when one is made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(4.5, 4), layout="constrained")


def png(figure: Any) -> bytes:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
