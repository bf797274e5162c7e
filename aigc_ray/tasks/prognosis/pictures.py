"""Curves by which a person judges predictions and generated cohorts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from aigc_ray import noise
from aigc_ray.model import Model
from aigc_ray.recognition import png
from aigc_ray.task import Batch
from aigc_ray.tasks.prognosis import metrics

if TYPE_CHECKING:
    from aigc_ray.tasks.prognosis.task import Prognosis

PATIENTS = 512  # of a generated cohort that is drawn


def cohort(task: Prognosis, model: Model) -> bytes:
    """How a generated cohort fares, by Kaplan and Meier."""
    drawn = model.draw(_empty(task, PATIENTS)).value
    figure, axes = _axes()
    _stairs(axes, drawn["time"].numpy(), drawn["event"].numpy() > 0.5, "generated")
    axes.legend(fontsize=8)
    return png(figure)


def told(task: Prognosis, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
    """(caption, PNG) pairs: predictions beside what happened, and a cohort beside the real one."""
    rows = batch.known["event"].numpy()
    time, event = batch.value["time"].numpy()[rows], batch.value["event"].numpy()[rows] > 0.5
    found = {name: value.numpy()[rows] for name, value in model.recognise(batch).items()}
    times, survival = found["times"][0], found["survival"]
    yield (
        "What was predicted (lines) and what happened (stairs), by thirds of the predicted risk",
        _thirds(times, survival, found["risk"], time, event),
    )
    yield (
        "D-calibration: in each tenth of the curves' way down a tenth of the events should lie",
        _tenths(metrics.own(times, survival, time), event),
    )
    drawn = model.draw(_empty(task, max(PATIENTS, len(time)))).value
    figure, axes = _axes()
    _stairs(axes, time, event, "real")
    _stairs(axes, drawn["time"].numpy(), drawn["event"].numpy() > 0.5, "generated")
    axes.legend(fontsize=8)
    yield "A generated cohort beside the real one", png(figure)


def _empty(task: Prognosis, count: int) -> Batch:
    return task.encode({}, noise.keys(0, torch.arange(count)))


def _thirds(
    times: np.ndarray, survival: np.ndarray, risk: np.ndarray, time: np.ndarray, event: np.ndarray
) -> bytes:
    figure, axes = _axes()
    order = np.argsort(risk)
    for name, rows in zip(("low", "middle", "high"), np.array_split(order, 3), strict=True):
        if not len(rows):
            continue
        line = axes.plot(times[:-1], survival[rows, :-1].mean(0), label=f"{name} risk")
        _stairs(axes, time[rows], event[rows], None, line[0].get_color())
    axes.legend(fontsize=8)
    return png(figure)


def _tenths(survival: np.ndarray, event: np.ndarray) -> bytes:
    counts = metrics.tenths(survival, event)
    figure, axes = _axes()
    axes.bar(np.arange(len(counts)) + 0.5, counts / max(counts.sum(), 1), 0.9)
    axes.axhline(1 / len(counts), color="grey", linewidth=0.8)
    axes.set(xlabel="tenth of the curve, from its end", ylabel="share of events", xlim=(0, 10))
    axes.set_ylim(bottom=0)
    return png(figure)


def _stairs(axes, time, event, label, color=None) -> None:  # type: ignore[no-untyped-def]
    when, left = metrics.kaplan_meier(time, event)
    axes.step(when, left, where="post", label=label, color=color, alpha=0.7)
    axes.set(xlabel="time", ylabel="share without the event", ylim=(0, 1.02))


def _axes():  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(4.5, 4), layout="constrained")
