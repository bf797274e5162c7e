"""How well classes are recognised, as figures and as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np


def recognition(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """AUC and accuracy of probabilities (N, K) against labels: (N,) classes or (N, K) flags.

    As MedMNIST computes them (Yang et al. 2023): AUC is the mean over classes of one against the
    rest; accuracy over several labels is the mean over labels at a threshold of one half.
    """
    flags = label if label.ndim == 2 else np.eye(probability.shape[1])[label.astype(int)]
    if probability.shape[1] == 2 and label.ndim == 1:
        flags, probability = flags[:, 1:], probability[:, 1:]
        accuracy = np.mean((probability[:, 0] >= 0.5) == (label == 1))
    elif label.ndim == 1:
        accuracy = np.mean(probability.argmax(1) == label)
    else:
        accuracy = np.mean((probability >= 0.5) == (label >= 0.5))
    areas = [auc(p, f) for p, f in zip(probability.T, flags.T, strict=True)]
    return {"auc": float(np.nanmean(areas)), "acc": float(accuracy)}


def auc(score: np.ndarray, flag: np.ndarray) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney 1947); NaN with one class only."""
    from scipy.stats import rankdata

    positive = flag > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def pictures(
    probability: np.ndarray, label: np.ndarray, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """The ROC curves, and for one label a row the confusion matrix."""
    from sklearn.metrics import confusion_matrix, roc_curve

    plt = pyplot()
    flags = label if label.ndim == 2 else np.eye(len(names))[label.astype(int)]
    figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
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
    yield "ROC curves", png(figure)
    if label.ndim == 1:
        counts = confusion_matrix(label, probability.argmax(1), labels=range(len(names)))
        figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
        axes.imshow(counts, cmap="Blues")
        for (row, column), count in np.ndenumerate(counts):
            dark = count > counts.max() / 2
            axes.text(column, row, count, ha="center", color="white" if dark else "black")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="recognised", ylabel="true")
        yield "Confusion matrix", png(figure)


def pyplot() -> Any:
    """Matplotlib without a screen, imported when a picture is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot().close(figure)
    return buffer.getvalue()
