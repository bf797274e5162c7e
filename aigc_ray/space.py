"""What a sweep searches, and what each of its trials tries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from aigc_ray import config
from aigc_ray.errors import UserError
from aigc_ray.task import Task
from aigc_ray.training import Training

Space = dict[str, tuple[Any, ...]]  # setting -> ("log" or "linear", low, high), ("choice", *values)
Trials = dict[int, Training]  # by number, from 1

APART = "space."  # what the keys of a search begin with
# Trials are compared at equal steps; the luckiest seed is not the best setting.
NOT_SEARCHED = ("seed", "steps", "num_workers", "gpu", "data", "init", "validate_every")


def searched(
    training: Training, settings: Iterable[str], wanted: Mapping[str, Any]
) -> tuple[Training, Space]:
    """The training with what is fixed by `space.KEY=value`, and what is left to search."""
    fixed = {_full(training, key) for key in settings}
    space: Space = {}
    for key, value in training.task.space().items():
        full = f"task.{key}"
        if full not in fixed and _can_start(training, full, value):
            space[full] = value
    for key, text in wanted.items():
        full = _full(training, key)
        if full in NOT_SEARCHED or full.removeprefix("task.") in NOT_SEARCHED:
            raise UserError(f"{APART}{key}: {key} cannot be searched")
        if full in fixed:
            raise UserError(f"{key} is given twice: as {key}=… and as {APART}{key}=…")
        spread = _spread(key, text)
        ends = [config.settings(one)[full] for one in _ends(training, full, spread)]
        if spread[0] == "choice":
            spread = ("choice", *ends)  # no longer as text
        space.pop(full, None)
        if len(spread) == 2:
            training = config.override(training, {full: spread[1]})
        elif not _can_start(training, full, spread):
            raise UserError(
                f"{APART}{key}: {key} changes the networks, which are those of init={training.init}"
            )
        else:
            space[full] = spread
    if not space:
        raise UserError(f"nothing is left to search; give a range as {APART}KEY=low..high")
    return training, dict(sorted(space.items()))  # in whatever order they were written


def _full(training: Training, key: str) -> str:
    known = config.settings(training)
    full = key if key in known else f"task.{key}"
    if full not in known:
        config.override(training, {key: ""})  # says what there is
    return full


def _spread(key: str, wanted: Any) -> tuple[Any, ...]:
    """`low..high` (even on a logarithmic scale from a ratio of ten on), or a choice."""
    if isinstance(wanted, (list, tuple)):
        return ("choice", *wanted)
    low, dots, high = str(wanted).partition("..")
    if not dots:
        return ("choice", *(wanted.split(",") if isinstance(wanted, str) else [wanted]))
    try:
        start, end = float(low), float(high)
    except ValueError:
        start = end = math.nan
    if not (start < end and math.isfinite(start) and math.isfinite(end)):
        raise UserError(f"{APART}{key} is low..high, or a,b,c, or one value; got {wanted!r}")
    return ("log" if start > 0 and end / start >= 10 else "linear", start, end)


def _ends(training: Training, full: str, spread: tuple[Any, ...]) -> list[Training]:
    """The training with each choice, or with both ends of a range."""
    kind, *values = spread
    if kind != "choice" and isinstance(config.settings(training)[full], int):
        values = [round(value) for value in values]
    return [config.override(training, {full: value}) for value in values]


def _can_start(training: Training, full: str, spread: tuple[Any, ...]) -> bool:
    """Whether the model to fine-tune fits: no value changes the networks."""
    if training.init is None:
        return True
    shapes = _shapes(training.task)
    return all(_shapes(one.task) == shapes for one in _ends(training, full, spread))


def _shapes(task: Task) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in task.networks().state_dict().items()}


def drawn(training: Training, space: Space, count: int) -> Trials:
    """First the training as it is, then others whose settings cover their ranges evenly."""
    random = np.random.default_rng(training.seed)
    others = count - 1
    # A Latin hypercube: each setting has one value in each of as many strips of its range.
    shares = {key: (random.permutation(others) + random.random(others)) / others for key in space}
    found = {json.dumps(config.to_json(training)): training}
    for number in range(others):
        sample = {
            key: _value(training, key, space[key], float(shares[key][number])) for key in space
        }
        one = config.override(training, sample)
        found.setdefault(json.dumps(config.to_json(one)), one)  # a choice of few may come twice
    return dict(enumerate(found.values(), 1))


def _value(training: Training, key: str, spread: tuple[Any, ...], share: float) -> Any:
    """What lies at `share`, 0 to 1, of a range."""
    kind, *values = spread
    if kind == "choice":
        return values[int(share * len(values))]
    low, high = values
    value = low * (high / low) ** share if kind == "log" else low + (high - low) * share
    value = float(f"{value:.3g}")  # no one wants to read, or type, more
    return round(value) if isinstance(config.settings(training)[key], int) else value
