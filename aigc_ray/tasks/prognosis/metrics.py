"""How far survival curves agree with what became of the patients.

A curve is given by its values (N, T) at times (T,) that rise from 0 on; between two times its
logarithm is a straight line (the hazard is constant), beyond the last it stays. Concordance and
Brier score are torchsurv's; D-calibration is not in a maintained library.
"""

from __future__ import annotations

import numpy as np
import torch

from aigc_ray.task import Batch

BINS = 10  # of D-calibration, as in Haider et al. 2020
BRIER_TIMES = 100  # at which the Brier score is taken, from the 5th to the 90th percentile
FEWEST = 10  # events by which one feature is judged
TINY = 1e-7


def at(times: np.ndarray, survival: np.ndarray, when: np.ndarray) -> np.ndarray:
    """(N, M): the curves (N, T) at times `when` (M,), the same for all."""
    place = np.clip(np.searchsorted(times, when, side="right"), 1, len(times) - 1)
    left, right = times[place - 1], times[place]
    share = np.clip((when - left) / np.maximum(right - left, TINY), 0, 1)
    log = np.log(np.maximum(survival, TINY))
    found: np.ndarray = np.exp(log[:, place - 1] * (1 - share) + log[:, place] * share)
    return found


def own(times: np.ndarray, survival: np.ndarray, when: np.ndarray) -> np.ndarray:
    """(N,): each curve at its own time `when` (N,)."""
    rows = np.arange(len(when))
    place = np.clip(np.searchsorted(times, when, side="right"), 1, len(times) - 1)
    left, right = times[place - 1], times[place]
    share = np.clip((when - left) / np.maximum(right - left, TINY), 0, 1)
    log = np.log(np.maximum(survival, TINY))
    found: np.ndarray = np.exp(log[rows, place - 1] * (1 - share) + log[rows, place] * share)
    return found


def nll(times: np.ndarray, survival: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Negative log-likelihood of a patient: of the density at an event, else of the curve.

    In logarithms of the unit of time, so it compares models of the same patients only.
    """
    place = np.clip(np.searchsorted(times, time, side="left"), 1, len(times) - 1)
    rows = np.arange(len(time))
    log = np.log(np.maximum(survival, TINY))
    width = np.maximum(times[place] - times[place - 1], TINY)
    hazard = np.maximum((log[rows, place - 1] - log[rows, place]) / width, TINY / times[-1])
    likely = np.log(own(times, survival, time)) + event * np.log(hazard)
    return float(-likely.mean())


def figures(
    times: np.ndarray,
    survival: np.ndarray,
    risk: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
) -> dict[str, float]:
    """Concordance, Brier score, time-dependent AUC and calibration; NaN where nothing can be said.

    Args:
        times: (T,).
        survival: (N, T), the curves at these times.
        risk: (N,), one score a patient, higher for earlier events; Harrell's and Uno's C rank it.
        time: (N,), of the event or of censoring.
        event: (N,) bool.
    """
    names = ("harrell_c", "uno_c", "antolini_c", "ibs", "auc", "d_calibration_p")
    if event.sum() < 2 or len(np.unique(time)) < 3:
        return dict.fromkeys(names, float("nan"))
    harrell, uno = concordance(risk, time, event)
    first, last = np.quantile(time, [0.05, 0.9]).tolist()
    grid = np.linspace(first, last, BRIER_TIMES)
    on_grid = at(times, survival, grid)
    return {
        "harrell_c": harrell,
        "uno_c": uno,
        "antolini_c": antolini(at(times, survival, time), time, event),
        "ibs": integrated_brier(on_grid, grid, time, event),
        "auc": mean_auc(on_grid, grid, time, event),
        "d_calibration_p": d_calibration(own(times, survival, time), event),
    }


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> tuple[float, float]:
    """Harrell's C (1996), and Uno's (2011), whose pairs are weighted against censoring."""
    from torchsurv.metrics.cindex import ConcordanceIndex

    one = _tensors(risk, time, event)
    weight = _weights(one[1], one[2])
    measure = ConcordanceIndex()
    # Uno's is truncated where nobody is left to be censored: beyond it no weight exists.
    last = one[1][weight > 0].max()
    return (
        float(measure(one[0], one[2], one[1], instate=False)),
        float(measure(one[0], one[2], one[1], weight=weight, tmax=last, instate=False)),
    )


def antolini(survival: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Antolini's C (2005): of a pair, who is likelier to have had the event by the earlier time.

    Args:
        survival: (N, N), row i the curve of patient i at the times of all.
    """
    from torchsurv.metrics.cindex import ConcordanceIndex

    risk, when, happened = _tensors(1 - survival, time, event)
    return float(ConcordanceIndex()(risk, happened, when, instate=False))


def integrated_brier(
    survival: np.ndarray, grid: np.ndarray, time: np.ndarray, event: np.ndarray
) -> float:
    """Mean over `grid` (M,) of the Brier score of curves (N, M), weighted against censoring by the
    rows' own censoring distribution (Graf et al. 1999)."""
    from torchsurv.metrics.brier_score import BrierScore

    measure = BrierScore()
    chance, when, happened = _tensors(survival, time, event)
    at_times = torch.as_tensor(grid, dtype=torch.float32)
    weights = _weights(when, happened), _weights(when, happened, at_times)
    measure(chance, happened, when, at_times, *weights)
    return float(measure.integral())


def mean_auc(survival: np.ndarray, grid: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Mean over `grid` (M,) of the cumulative/dynamic AUC of curves (N, M): how well those who had
    the event by then are told from those who had not (Uno et al. 2007)."""
    from torchsurv.metrics.auc import Auc

    risk, when, happened = _tensors(1 - survival, time, event)
    at_times = torch.as_tensor(grid, dtype=torch.float32)
    first = when[happened].min()
    inside = (at_times >= first) & (at_times < when.max())
    if not inside.any():
        return float("nan")
    at_times = at_times[inside]
    weights = _weights(when, happened), _weights(when, happened, at_times)
    found = Auc()(
        risk[:, inside], happened, when, "cumulative", weights[0], at_times, weights[1],
        instate=False,
    )  # fmt: skip
    return float(found.nanmean())


def d_calibration(survival: np.ndarray, event: np.ndarray) -> float:
    """p-value of D-calibration (Haider et al. 2020): of patients who die, a tenth should do so
    while their curve is in each tenth of its way down; below .05 the curves are miscalibrated.

    Args:
        survival: (N,), each patient's curve at the own time.
        event: (N,) bool.
    """
    from scipy.stats import chisquare

    return float(chisquare(tenths(survival, event)).pvalue)


def tenths(survival: np.ndarray, event: np.ndarray) -> np.ndarray:
    """(10,) patients whose curve (N,) stood in each tenth of its way down when they died, from the
    end on; a censored one is spread over those that were still to come."""
    event = event.astype(bool)
    edges = np.linspace(0, 1, BINS + 1)
    found = np.histogram(np.clip(survival[event], 0, 1), edges)[0].astype(float)
    left = np.clip(survival[~event], TINY, 1)[:, None]
    found += (np.clip(np.minimum(edges[1:], left) - edges[:-1], 0, None) / left).sum(0)
    return found


def alone(batch: Batch, feature: str) -> float:
    """The concordance of one feature, or of its absence, in the direction in which it is larger; 0
    where there is none. Categories are ordered by how soon their patients' ends or events come."""
    from torchsurv.metrics.cindex import ConcordanceIndex

    told = batch.known["event"]
    time, event = batch.value["time"][told], batch.value["event"][told] > 0.5
    value, known = batch.value[feature][told], batch.known[feature][told]
    risks = [((~known).float(), torch.ones_like(known))]
    if value.is_floating_point():
        risks.append((value.float(), known))
    else:
        exposed, rows, gone = (
            torch.zeros(int(value.max()) + 1).index_add_(0, value, weight * known)
            for weight in (time.float(), torch.ones(len(time)), event.float())
        )
        risks += [((of / exposed.clamp(min=TINY))[value], known) for of in (rows, gone)]
    best = 0.0
    for risk, here in risks:
        if event[here].sum() < FEWEST or len(risk[here].unique()) < 2:
            continue
        found = float(ConcordanceIndex()(risk[here], event[here], time[here], instate=False))
        best = max(best, found, 1 - found)
    return best


def kaplan_meier(time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) from 0 on and the share without the event from each of them on (Kaplan and Meier
    1958); 1 where nobody is known to have had it."""
    from torchsurv.stats.kaplan_meier import KaplanMeierEstimator

    if not event.any():
        return np.array([0.0, float(time.max(initial=0.0))]), np.ones(2)
    estimate = KaplanMeierEstimator()
    estimate(torch.as_tensor(event), torch.as_tensor(time, dtype=torch.float32))
    return np.append(0.0, estimate.time), np.append(1.0, estimate.km_est)


def _tensors(values: np.ndarray, time: np.ndarray, event: np.ndarray) -> tuple[torch.Tensor, ...]:
    return (
        torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32),
        torch.as_tensor(time, dtype=torch.float32),
        torch.as_tensor(event.astype(bool)),
    )


def _weights(
    time: torch.Tensor, event: torch.Tensor, when: torch.Tensor | None = None
) -> torch.Tensor:
    """1 over the share that is not censored yet, by Kaplan and Meier."""
    from torchsurv.stats.ipcw import get_ipcw

    found: torch.Tensor = get_ipcw(event, time, when)
    return found
