"""From opinions to an answer, or to none: what is fitted on held-back rows and kept with a model.

A recogniser and the critic's class head each have an opinion; which of them, or their mean, is
heard is decided here, how sure it may sound, and when no answer is given. Nothing of it needs the
networks to be trained again, so a model is fitted to another place by a few hundred rows of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from aigc_ray import calibration, decisions, intervals, recognition
from aigc_ray.errors import UserError

HARM = 0.002  # of AUC that the critic's part may cost at most, at the interval's lower end
UNUSUAL = 0.99  # share of held-back rows that are answered as far as their looks go


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the user of a model decides; the rest is fitted."""

    alpha: float = 0.1  # share of rows whose set may miss the truth
    sensitivity: float | None = 0.95  # of the operating point
    cost: float | None = None  # or: a miss is so many times as dear as a false alarm
    positive: str | None = None  # the finding; None: the last of two classes, or every label

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha lies between 0 and 1; got {self.alpha}")
        if self.cost is None and self.sensitivity is None:
            raise UserError("sensitivity or cost is needed to choose an operating point")
        if self.cost is not None and not self.cost > 0:
            raise UserError(f"cost is above 0; got {self.cost}")
        if self.sensitivity is not None and not 0 < self.sensitivity <= 1:
            raise UserError(f"sensitivity is above 0 and at most 1; got {self.sensitivity}")

    def check(self, names: Sequence[str]) -> None:
        """Raise a `UserError` where the finding is none of these classes or labels."""
        if self.positive is not None and self.positive not in names:
            raise UserError(f"positive is one of {', '.join(names)}; got {self.positive!r}")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What turns opinions into an answer, a set, a call, or a refusal."""

    names: tuple[str, ...]  # of the classes or labels
    several: bool  # whether they hold independently
    share: float  # of the critic's opinion in the answer, 0 or a half
    gain: dict[str, float] | None  # the mean's AUC minus the recogniser's: value, low, high
    gain_elsewhere: dict[str, float] | None = None  # the same of the rows, perturbed
    temperature: float
    alpha: float
    threshold: tuple[Any, ...]  # (K,) or (K, 2): what a probability must reach to be in the set
    pooled: tuple[Any, ...]
    unusual: float | None  # an outlier's score above this is answered by nobody
    points: dict[str, dict[str, float]]  # the operating point of each finding
    rows: dict[str, int]  # that each part was fitted on
    on: str  # the data set

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        tuples = {key: tuple(data[key]) for key in ("names", "threshold", "pooled")}
        return cls(**{**data, **tuples})

    def probability(self, recogniser: np.ndarray, critic: np.ndarray | None) -> np.ndarray:
        """(N, K): the opinions together, as sure as they may be."""
        mixed = _mixed(recogniser, critic, self.share)
        return calibration.apply(mixed, self.temperature, self.several)

    def verdict(self, probability: np.ndarray, outlier: float | None) -> dict[str, Any]:
        """What is said beside the probabilities (K,) of one row; reasons are whole sentences."""
        threshold = np.array(self.threshold)
        inside = calibration.sets(probability[None], threshold)[0]
        strange = self.unusual is not None and outlier is not None and outlier > self.unusual
        found: dict[str, Any] = {}
        if self.several:
            unsure = [name for name, (no, yes) in zip(self.names, inside, strict=True) if no == yes]
            found["undecided"] = unsure
            reason = "every label is undecided" if len(unsure) == len(self.names) else None
        else:
            names = [name for name, here in zip(self.names, inside, strict=True) if here]
            found["set"] = names
            reason = None
            if len(names) > 1:
                reason = f"it cannot be told between {' and '.join(names)}"
            elif not names:
                reason = "no class is likely enough"
        if strange:
            share = f"{UNUSUAL * 100:.0f} %"
            reason = f"the image is out of distribution: stranger than {share} of those held back"
        found |= {"abstained": reason is not None, "reason": reason}
        if outlier is not None:
            found["outlier"] = round(float(outlier), 4)
        if self.points and not strange:
            found["findings"] = {
                name: {"called": bool(probability[self.names.index(name)] >= p["threshold"])} | p
                for name, p in self.points.items()
            }
        return found


def fit(
    opinions: Mapping[str, np.ndarray],
    label: np.ndarray,
    half: np.ndarray,
    names: Sequence[str],
    policy: Policy,
    *,
    elsewhere: Mapping[str, np.ndarray] | None = None,
    outlier: np.ndarray | None = None,
    share: float | None = None,
    on: str = "",
) -> Judgement:
    """A judgement from held-back rows that were not trained on.

    One half says whose opinion is heard; the other, which has not seen this choice, says what a set
    must hold, where a finding is called and what is unusual. The temperature, one number, is fitted
    to both; for two classes, whose order it leaves as it was, it changes no set.

    Args:
        opinions: (N, K) each; "recogniser", and perhaps "critic".
        label: (N,) or (N, K).
        half: (N,) bool, True for the first half; rows of a patient share one.
        elsewhere: the opinions of the same rows, perturbed, which most networks find harder: by
            these it is judged whether the critic helps, and how sure an answer may sound.
        outlier: (N,) scores.
        share: of the critic in the answer, where that is settled already.

    Raises:
        UserError: a half lacks rows or classes.
    """
    if not half.any() or half.all():
        raise UserError(
            "the validation split is too small to be halved: two patients at least are needed"
        )
    several = label.ndim == 2
    there = opinions if elsewhere is None else elsewhere
    gains: list[dict[str, float] | None] = [None, None]
    if share is None:
        share = 0.0
        if "critic" in opinions:
            gains = [_added(one, label, half) for one in (opinions, there)]
            share = 0.5 if helps(*gains) else 0.0
    mixed, seen = (_mixed(one["recogniser"], one.get("critic"), share) for one in (opinions, there))
    temperature = calibration.cautious_temperature(seen, label)
    sure = calibration.apply(mixed, temperature, several)
    rest = ~half
    sets = calibration.conformal(sure[rest], label[rest], policy.alpha)
    unusual = None
    if outlier is not None:
        unusual = float(np.quantile(outlier[rest], UNUSUAL, method="higher"))
    return Judgement(
        names=tuple(names),
        several=several,
        share=share,
        gain=gains[0],
        gain_elsewhere=gains[1],
        temperature=temperature,
        alpha=policy.alpha,
        threshold=tuple(sets.threshold.tolist()),
        pooled=tuple(sets.pooled.tolist()),
        unusual=unusual,
        points=_points(sure[rest], label[rest], names, policy),
        rows={
            "choice": int(half.sum()),
            "sets and thresholds": int(rest.sum()),
            "temperature": len(half),
        },
        on=on,
    )


def _added(
    opinions: Mapping[str, np.ndarray], label: np.ndarray, rows: np.ndarray
) -> dict[str, float] | None:
    alone, critic = opinions["recogniser"][rows], opinions["critic"][rows]
    return gained(alone, _mixed(alone, critic, 0.5), label[rows])


def _mixed(recogniser: np.ndarray, critic: np.ndarray | None, share: float) -> np.ndarray:
    if not share or critic is None:
        return recogniser
    return (1 - share) * recogniser + share * critic


def gained(alone: np.ndarray, other: np.ndarray, label: np.ndarray) -> dict[str, float] | None:
    """What AUC the other opinion has above that of `alone`, with an interval by paired bootstrap.

    None where a class is absent, so that nothing can be shown.
    """

    def difference(alone: np.ndarray, other: np.ndarray, label: np.ndarray) -> float:
        with_it, without = (recognition.figures(p, label)["auc"] for p in (other, alone))
        return with_it - without

    strata = label if label.ndim == 1 else None
    try:
        found = intervals.bootstrap(difference, alone, other, label, strata=strata, draws=500)
    except UserError:
        return None
    return {name: round(value, 5) for name, value in found._asdict().items()}


def helps(here: Mapping[str, float] | None, there: Mapping[str, float] | None) -> bool:
    """Whether an opinion may be heard, by what it gains on held-back rows and on them perturbed.

    It must harm neither and add to the second: nearly all networks may get the first ones right,
    and then these say nothing. What the answers are without it always stands beside.
    """
    if here is None or there is None:
        return False
    return min(here["low"], there["low"]) > -HARM and there["value"] > 0


def _points(
    probability: np.ndarray, label: np.ndarray, names: Sequence[str], policy: Policy
) -> dict[str, dict[str, float]]:
    """The operating points: `positive`'s, else the second of two classes', or each label's."""
    policy.check(names)
    positive = policy.positive
    if label.ndim == 1 and positive is None:
        if len(names) != 2:
            return {}
        positive = names[1]
    wanted = [positive] if positive is not None else list(names)
    found = {}
    for name in wanted:
        column = list(names).index(name)
        present = label[:, column] if label.ndim == 2 else label == column
        if not present.any() or present.all():
            continue  # the rows say nothing of this one
        by = {"cost": policy.cost} if policy.cost else {"sensitivity": policy.sensitivity}
        point = decisions.operating_point(probability[:, column], present, name=name, **by)
        found[name] = point._asdict()
    return found
