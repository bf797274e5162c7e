"""What is told of a model: fitted on held-back rows, measured on a split, drawn for a person.

Training does it once at its end and `evaluate` again whenever it is asked, on the same or on other
data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from aigc_ray import fidelity, intervals, judgement, recognition, rows
from aigc_ray.judgement import Policy
from aigc_ray.model import Model
from aigc_ray.outliers import SPACES, Outliers
from aigc_ray.splitter import halves, named
from aigc_ray.worker import finite, split

KNOWN_ROWS = 20_000  # training rows that unusual ones are told by, at most
GROUPS = 12  # different values of a column that is taken for a division into groups
FEWEST = 10  # rows of a group for which figures are told
EXPLAINED, EXPLAINED_PIXELS = 8, 1 << 18  # images that heat maps are tried on, at most

Job = Mapping[str, Any]


class Marks(NamedTuple):
    """What is known of a split's rows beside their fields."""

    patient: np.ndarray  # (N,) of text; a row of nobody's is its own
    columns: dict[str, np.ndarray]  # (N,) of text each; "" where it is not known


def judge(
    model: Model, job: Job, policy: Policy, *, afresh: bool = False, share: float | None = None
) -> None:
    """Fit the model's judgement to the validation split, and what it calls unusual.

    Args:
        afresh: the data are another place's: the training rows that unusual ones are told by stay.
        share: of the critic in the answer, where that is settled already.

    Raises:
        UserError: the validation split is too small.
    """
    field = model.task.schema.judged
    if field is None:
        fitted: dict[str, Any] = {}
        for number, member in enumerate(model.members, 1):
            settled = model.task.settle(member, split(job, model.task, "val")) or {}
            whose = f"member {number}: " if len(model.members) > 1 else ""
            fitted |= {f"{whose}{name}": value for name, value in settled.items()}
        model.info["calibration"] = fitted or None
        return
    model.judgement = None
    outliers, model.outliers = model.outliers, None
    prediction, value, known = fidelity.collected(
        model, split(job, model.task, "val"), everything=True
    )
    moved = (model.task.perturb(batch) for batch in split(job, model.task, "val"))
    elsewhere, _, _ = fidelity.collected(model, moved, everything=True)
    right = known[field.name]
    held_back = [torch.from_numpy(prediction[name]) for name in SPACES if name in prediction]
    if not afresh:
        outliers = _outliers(model, job, held_back)
    elif outliers is not None:
        outliers = outliers.again(held_back)
    score = None if outliers is None else outliers.score(held_back).numpy()
    model.judgement = judgement.fit(
        _voices(prediction, right),
        value[field.name][right],
        halves(marks(job, "val").patient)[right],
        field.values,
        policy,
        elsewhere=_voices(elsewhere, right),
        outlier=None if score is None else score[right],
        share=share,
        on=str(job["data"]),
    )
    model.outliers = outliers
    model.info["calibration"] = model.judgement.to_json()


def admit(model: Model, job: Job) -> None:
    """Let the recogniser that learned from generated rows too answer, where that helps.

    The one that is not heard stays with the model as "beside", for its figures.
    """
    field = model.task.schema.judged
    if field is None or "beside" not in model.members[0]:
        return
    model.judgement = None  # it is fitted to whoever is heard
    gains = []
    for look in (lambda batch: batch, model.task.perturb):
        rows = (look(batch) for batch in split(job, model.task, "val", half=True))
        prediction, value, known = fidelity.collected(model, rows, everything=True)
        right = known[field.name]
        alone, other = (prediction[name][right] for name in ("probability", "beside"))
        gains.append(judgement.gained(alone, other, value[field.name][right]))
    heard = judgement.helps(*gains)
    if heard:
        for member in model.members:
            member["recogniser"], member["beside"] = member["beside"], member["recogniser"]
    model.info["generated_rows"] = {
        "heard": heard,
        "gain": gains[0],
        "gain_elsewhere": gains[1],
    }


def _voices(prediction: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Whose opinions there are, of these rows."""
    found = {"recogniser": prediction["probability"][rows]}
    return found | ({"critic": prediction["critic"][rows]} if "critic" in prediction else {})


def _outliers(model: Model, job: Job, held_back: Sequence[torch.Tensor]) -> Outliers:
    field = model.task.schema.judged
    assert field is not None
    spaces: list[list[torch.Tensor]] = []
    labels = []
    for batch in split(job, model.task, "train", KNOWN_ROWS):
        seen = model.recognise(batch)
        spaces.append([seen[name] for name in SPACES if name in seen])
        labels.append(batch.value[field.name])
    label = torch.cat(labels) if field.kind == "category" else None
    return Outliers.fit([torch.cat(parts) for parts in zip(*spaces, strict=True)], label, held_back)


def told(model: Model, job: Job, part: str) -> dict[str, Any]:
    """The figures of a split, with intervals, by subgroup, and of each opinion by itself.

    Returns:
        `metrics`, flat; `intervals` and `opinions`, by metric; `subgroups`, by column and value.
    """
    collected = fidelity.collected(model, split(job, model.task, part), everything=True)
    about = marks(job, part)
    metrics = model.task.measure(*collected)
    field = model.task.schema.judged
    found: dict[str, Any] = {"metrics": metrics}
    found["intervals"] = _intervals(model, collected, about.patient)
    found["subgroups"] = _subgroups(model, collected, about.columns)
    if field is not None:
        found["metrics"] = metrics | _answers(model, collected, field.name)
        found["opinions"] = _opinions(model, collected)
    return dict(finite(found))


Collected = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def _intervals(model: Model, collected: Collected, patient: np.ndarray) -> dict[str, Any]:
    field, place = model.task.schema.judged, np.arange(len(patient))

    def metrics(rows: np.ndarray) -> dict[str, float]:
        return model.task.measure(*(_rows(part, rows) for part in collected))

    label = None if field is None else collected[1][field.name]
    strata = label if label is not None and label.ndim == 1 else None
    draws = max(100, min(model.task.draws, 2_000_000 // len(place)))
    found = intervals.bootstraps(metrics, place, strata=strata, groups=patient, draws=draws)
    return {name: [one.low, one.high] for name, one in found.items()}


def _subgroups(
    model: Model, collected: Collected, columns: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in columns.items():
        for value in sorted(set(values) - {""}):
            here = np.flatnonzero(values == value)
            one: dict[str, Any] = {"rows": len(here)}
            if len(here) >= FEWEST:
                one |= model.task.measure(*(_rows(part, here) for part in collected))
            found.setdefault(name, {})[value] = one
    return found


def _answers(model: Model, collected: Collected, target: str) -> dict[str, Any]:
    """How honest the probabilities are, before and after, and what becomes of the answers."""
    prediction, value, known = collected
    rows = known[target]
    label, probability = value[target][rows], prediction["probability"][rows]
    found = recognition.honesty(probability, label)
    judged = model.judgement
    if judged is None:
        return found
    raw = _raw(model, prediction)[rows]
    before = recognition.honesty(raw, label)
    found |= {f"{name}_uncalibrated": before[name] for name in ("nll", "brier", "ece")}
    strange = prediction.get("outlier", np.zeros(len(known[target])))[rows]
    verdicts = [judged.verdict(p, float(o)) for p, o in zip(probability, strange, strict=True)]
    answered = np.array([not verdict["abstained"] for verdict in verdicts])
    found["answered"] = float(answered.mean())
    if not judged.several:
        inside = [judged.names[y] in v["set"] for y, v in zip(label, verdicts, strict=True)]
        found["set_coverage"] = float(np.mean(inside))
        right = probability.argmax(1) == label
        found["answered_acc"] = float(right[answered].mean()) if answered.any() else float("nan")
    for name, point in judged.points.items():
        column = judged.names.index(name)
        called = probability[:, column] >= point["threshold"]
        present = (label[:, column] if label.ndim == 2 else label == column) > 0
        found[f"sensitivity_at_point_{name}"] = _share(called[present])
        found[f"specificity_at_point_{name}"] = _share(~called[~present])
    return found


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _raw(model: Model, prediction: Mapping[str, np.ndarray]) -> np.ndarray:
    assert model.judgement is not None
    share = model.judgement.share
    found: np.ndarray = prediction["recogniser"]
    return found if not share else (1 - share) * found + share * prediction["critic"]


def _opinions(model: Model, collected: Collected) -> dict[str, dict[str, float]]:
    """Each opinion and their mean by themselves: what the adversarial part adds, or does not."""
    prediction, value, known = collected
    alone = prediction.get("recogniser", prediction["probability"])
    every = {"recogniser": alone}
    if "critic" in prediction:
        every |= {"critic": prediction["critic"], "mean": (alone + prediction["critic"]) / 2}
    if "beside" in prediction:
        every["beside"] = prediction["beside"]
    return {
        name: model.task.measure({"probability": probability}, value, known)
        for name, probability in every.items()
    }


def _rows(part: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in part.items()}


# --- what is known of rows beside their fields ------------------------------------------------


def marks(job: Job, part: str) -> Marks:
    """Patients and the further columns of a split; ages as decades, rare divisions left out."""
    patient: list[str] = []
    extra: list[dict[str, str]] = []
    for numbers, columns in rows.sampled(
        job["data"], job["description"], part, ["patient", "extra"]
    ):
        patient += named(columns["patient"], numbers.tolist())
        extra += [dict(_flat(json.loads(text))) if text else {} for text in columns["extra"]]
    names = sorted({name for one in extra for name in one})
    found = {name: np.array([one.get(name, "") for one in extra]) for name in names}
    divided = {
        name: values for name, values in found.items() if 1 < len(set(values) - {""}) <= GROUPS
    }
    return Marks(np.array(patient), divided)


def _flat(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in extra.items():
        if isinstance(value, Mapping):  # a DICOM header's part
            yield from _flat(value)
        elif name.lower() in ("age", "patientage", "age_years"):
            yield "age_band", _decade(value)
        elif isinstance(value, (str, int, bool)):
            yield name, str(value)


def _decade(age: Any) -> str:
    try:
        start = min(int(float(age)) // 10 * 10, 90)
    except (TypeError, ValueError):
        return ""
    return "90+" if start == 90 else f"{start}-{start + 9}"


# --- the generator ----------------------------------------------------------------------------


def generation(
    model: Model, job: Job, part: str, steps: int, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """What the generator is worth beside a split; None where the model's own rows are not there."""
    task = model.task
    held_back, test = (list(split(job, task, name, fidelity.ROWS)) for name in ("val", part))
    say("generated rows are compared with real ones")
    train = split(job, task, "train", fidelity.TRAINING)
    found = fidelity.fidelity(model, train, held_back, test)
    if steps and task.transfers:
        say(f"a recogniser learns from generated rows alone, {steps} steps, and from real ones")
        found |= fidelity.transfer(model, split(job, task, "train"), test, steps)
    return dict(finite(found))


def explained(model: Model, job: Job, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Whether heat maps show what the recogniser has learned; None where there is none to show."""
    from aigc_ray import explanation

    task = model.task
    field = task.schema.judged
    if field is None or not explanation.possible(task):
        return task.accounted(model, next(split(job, task, "val")))
    say("heat maps are tried on networks whose weights are random")
    first = next(split(job, task, "val"))
    pixels = first.value[explanation.image_of(task)][0, 0].numel()
    rows = min(max(2, min(EXPLAINED, EXPLAINED_PIXELS // pixels)), len(first.row))
    batch = first.take(torch.arange(rows))
    probability = model.recognise(batch)["probability"]
    return explanation.gate(task, model.members[0], batch, probability.argmax(1))


def pictures(model: Model, job: Job, part: str) -> Iterator[tuple[str, bytes]]:
    """(caption, PNG) pairs by which a person judges a model."""
    task = model.task
    yield from task.pictures(model, next(split(job, task, part)))
    field = task.schema.judged
    if field is None:
        return
    prediction, value, known = fidelity.collected(model, split(job, task, part))
    right = known[field.name]
    yield from recognition.pictures(
        prediction["probability"][right], value[field.name][right], field.values
    )
