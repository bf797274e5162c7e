"""What generated rows are worth: how like real ones, whether copied, what can be learned of them.

All is measured in the model's own feature space, standardised by the training rows; copies are
looked for in the rows themselves too. Generated rows are drawn under the conditions of the real
rows that they are compared with, and training rows are taken in those conditions' proportions, so
that a difference in the share of classes is not taken for one of looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aigc_ray import distances, noise
from aigc_ray.adversary import Adversary
from aigc_ray.intervals import Interval
from aigc_ray.model import Model
from aigc_ray.task import Batch, Networks, Stage

ROWS = 2000  # of each kind that are compared, at most
TRAINING = 20_000  # training rows among which copies are looked for
MEMORY = 256 << 20  # bytes of training rows, and as many of generated ones, to learn from
GENERATED = 500  # that are looked at for copies, at least
PROJECTED = 256  # axes that the rows themselves are projected on
COPIES = 0.02  # share of copies above which a generator is refused
SEED = 20_000  # of what is drawn here, apart from requests' usual seeds


class Seen(NamedTuple):
    """Rows by their features, as they are, and the condition they stand under."""

    features: np.ndarray  # (N, D)
    plain: np.ndarray | None  # (N, PROJECTED or fewer); None for columns of a table
    label: np.ndarray | None  # (N,) or (N, K)


def fidelity(
    model: Model,
    train: Iterable[Batch],
    held_back: Sequence[Batch],
    test: Sequence[Batch],
    seed: int = SEED,
) -> dict[str, Any]:
    """Figures of the generator, means over a task's `drawings`; `copies` says whether it may be
    promoted.

    Args:
        train: the rows that it was trained on.
        held_back: rows of the same source that it never saw; copies are judged by their distances.
        test: what generated rows are compared with.
    """
    known = _taken(model, train, TRAINING)
    found = _likeness(model, known, held_back, test, seed)
    other = model.task.without
    if other is not None and other in model.members[0]:
        plain = Networks({**model.members[0], "generator": model.members[0][other]})
        alone = _likeness(Model(model.task, [plain], {}), known, held_back, test, seed)
        found |= {
            f"{name}_without_adversary": value
            for name, value in alone.items()
            if not name.endswith("_real")
        }
    return found | _memory(model, known, _standard(known.features), held_back, seed)


def _likeness(
    model: Model, known: Seen, held_back: Sequence[Batch], test: Sequence[Batch], seed: int
) -> dict[str, Any]:
    """How like the test rows generated ones are, and how like them other real ones are."""
    look = _standard(known.features)
    target = _taken(model, test, ROWS)
    seeds = range(seed, seed + model.task.drawings)
    made = [_taken(model, _drawn(model, test, one), ROWS) for one in seeds]
    like = _matched(known, target)
    real, fakes = look(target.features), [look(one.features) for one in made]
    twin = look(known.features[like])
    between, own = distances.kid(twin, real), distances.prdc(twin, real)
    generated = Interval(*np.mean([distances.kid(fake, real) for fake in fakes], 0).tolist())
    filled = distances.Prdc(*np.mean([distances.prdc(fake, real) for fake in fakes], 0).tolist())
    found: dict[str, Any] = {
        "kid": generated._asdict(),
        "kid_real": between._asdict(),
        # Two samples of one source are as near as their number lets them: never divide by less.
        "kid_ratio": generated.value / max(between.value, between.high - between.value),
        **filled._asdict(),
        "coverage_real": own.coverage,
    }
    there = joined(test, ROWS)
    if model.task.compares:
        # As many generated rows as real ones, so that chance parts both alike.
        drawings = [joined(_drawn(model, [there], one), ROWS) for one in seeds]
        apart = [model.task.compared(there, drawing) for drawing in drawings]
        found |= {name: float(np.mean([one[name] for one in apart])) for name in apart[0]}
        alike = model.task.compared(there, joined(held_back, ROWS))
        found |= {f"{name}_real": value for name, value in alike.items()}
    return found


def _memory(
    model: Model,
    known: Seen,
    look: Callable[[np.ndarray], np.ndarray],
    held_back: Sequence[Batch],
    seed: int,
) -> dict[str, Any]:
    unseen = _taken(model, held_back, ROWS)
    times = -(-GENERATED // len(unseen.features))
    rounds = [_taken(model, _drawn(model, held_back, seed + 1 + n), ROWS) for n in range(times)]
    found: dict[str, Any] = {}
    for name, space in (("features", look), ("plain", np.asarray)):
        if getattr(known, name) is None:
            continue
        known_rows = space(getattr(known, name))
        made = np.concatenate([space(getattr(one, name)) for one in rounds])
        near = distances.nearest(made, known_rows).distance
        far = distances.nearest(space(getattr(unseen, name)), known_rows).distance
        prefix = "" if name == "features" else "plain_"
        found[f"{prefix}nn_auc"] = distances.nearest_auc(near, far)._asdict()
        # Who was trained on, told by how near a generated row is: .5 gives nobody away.
        count = len(known_rows)
        places = np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)
        members = distances.nearest(known_rows[places], made).distance
        strangers = distances.nearest(space(getattr(unseen, name)), made).distance
        found[f"{prefix}membership_auc"] = distances.nearest_auc(members, strangers)._asdict()
        found[f"{prefix}copy_rate"] = distances.copy_rate(near, far)._asdict()
    surely = [found[name]["low"] for name in ("copy_rate", "plain_copy_rate") if name in found]
    return found | {"copies": model.task.personal and bool(max(surely) > COPIES)}


# --- learning from generated rows alone -------------------------------------------------------


def transfer(
    model: Model, train: Iterable[Batch], test: Sequence[Batch], steps: int, batch_size: int = 64
) -> dict[str, float]:
    """Train on synthetic, test on real (Esteban et al. 2017), beside the same trained on real rows.

    The recogniser is trained anew, twice from the same weights: on the generated rows, one under
    each training row's condition, and on the training rows.

    Returns:
        The task's objective of both on the test rows, and their ratio.
    """
    task = model.task
    player = next(p for s in task.stages() for p in s.players if p.network == "recogniser")
    stages = (Stage("recogniser", steps, (player,), refresh=0),)
    size = sum(math.prod(field.shape) for field in task.schema.fields)
    real = joined(train, min(TRAINING, max(batch_size, MEMORY // (4 * size))))
    fake = real._replace(value=dict(real.value))
    drawn = [batch.value for batch in _drawn(model, [real], SEED)]
    for name in drawn[0]:
        fake.value[name] = torch.cat([value[name] for value in drawn])
    metric = task.headline or task.objective[0]
    scores = []
    for rows in (fake, real):
        learner = Adversary(task, seed=0, stages=stages)
        learner.prepare(iter([rows]))
        order = np.random.default_rng(0)
        for step in range(steps):
            chosen = torch.from_numpy(order.integers(len(real.row), size=batch_size))
            key = noise.keys(step, torch.arange(batch_size))
            learner.step(rows.take(chosen)._replace(row=key))
        opened = Model(task, [learner.average], {})
        scores.append(figures(opened, test)[metric])
    fake_score, real_score = scores
    return {
        f"tstr_{metric}": fake_score,
        f"trtr_{metric}": real_score,
        "tstr_over_trtr": fake_score / real_score,
    }


# --- rows -------------------------------------------------------------------------------------


def figures(model: Model, batches: Iterable[Batch]) -> dict[str, float]:
    """The task's metrics of a model on these rows."""
    return model.task.measure(*collected(model, batches))


def collected(
    model: Model, batches: Iterable[Batch], *, everything: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predictions, targets and which are known, of all rows."""
    targets = [field.name for field in model.task.schema.part("target")]
    predictions, values, known = [], [], []
    for batch in batches:
        predicted = model.recognise(batch, everything=everything)
        predictions.append({name: value.numpy(force=True) for name, value in predicted.items()})
        values.append({name: batch.value[name].numpy(force=True) for name in targets})
        known.append({name: batch.known[name].numpy(force=True) for name in targets})
    return _stacked(predictions), _stacked(values), _stacked(known)


def _stacked(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _drawn(model: Model, conditions: Iterable[Batch], seed: int) -> Iterator[Batch]:
    """Generated rows under the conditions of real ones, 256 at a time."""
    done = 0
    for whole in conditions:
        for start in range(0, len(whole.row), 256):
            batch = whole.take(torch.arange(start, min(start + 256, len(whole.row))))
            number = torch.arange(done, done + len(batch.row))
            done += len(batch.row)
            batch = batch._replace(row=noise.keys(seed, number))
            drawn = model.draw(batch)
            value, known = dict(batch.value), dict(batch.known)
            for field in model.task.schema.part("generated"):
                value[field.name] = drawn.value[field.name].to(value[field.name].dtype)
                known[field.name] = drawn.known.get(field.name, torch.ones_like(batch.row) > 0)
            yield batch._replace(value=value, known=known)


def _taken(model: Model, batches: Iterable[Batch], most: int) -> Seen:
    judged = model.task.schema.judged
    generated = [f.name for f in model.task.schema.part("generated") if f.kind == "image"]
    features, plain, label, count = [], [], [], 0
    for batch in batches:
        batch = batch.take(torch.arange(min(len(batch.row), most - count)))
        count += len(batch.row)
        features.append(model.recognise(batch)["features"].numpy())
        if generated:  # nothing but pixels has a distance by itself
            flat = torch.cat([batch.value[name].flatten(1) for name in generated], 1)
            plain.append(_projected(flat).numpy())
        if judged is not None:
            label.append(batch.value[judged.name].numpy())
        if count == most:
            break
    return Seen(
        np.concatenate(features),
        np.concatenate(plain) if plain else None,
        np.concatenate(label) if label else None,
    )


def _projected(flat: Tensor) -> Tensor:
    """(B, P) on a few fixed random axes, which keep distances (Johnson and Lindenstrauss 1984)."""
    if flat.shape[1] <= PROJECTED:
        return flat
    found = torch.zeros(len(flat), PROJECTED)
    for start in range(0, flat.shape[1], 4096):  # the matrix of a large colour image is 200 MB
        part = flat[:, start : start + 4096]
        axes = torch.Generator().manual_seed(start)
        found += part @ torch.randn(part.shape[1], PROJECTED, generator=axes)
    return found / PROJECTED**0.5


def _standard(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    mean, spread = features.mean(0), features.std(0)
    alive = spread > 1e-6
    return lambda rows: (rows[:, alive] - mean[alive]) / spread[alive]


def _matched(known: Seen, target: Seen) -> np.ndarray:
    """For each row of `target` another training row, of its class where there are classes."""
    random = np.random.default_rng(0)
    wanted = len(target.features)
    if known.label is None or target.label is None or known.label.ndim > 1:
        return random.permutation(len(known.features))[:wanted]
    chosen = np.zeros(wanted, int)
    for label in np.unique(target.label):
        places = np.flatnonzero(target.label == label)
        pool = np.flatnonzero(known.label == label)
        if not len(pool):
            pool = np.arange(len(known.features))
        chosen[places] = random.choice(pool, len(places), replace=len(pool) < len(places))
    return chosen


def joined(batches: Iterable[Batch], most: int) -> Batch:
    """The first rows of these batches as one."""
    taken: list[Batch] = []
    for batch in batches:
        taken.append(batch.take(torch.arange(min(len(batch.row), most))))
        most -= len(taken[-1].row)
        if most == 0:
            break
    return Batch(
        {name: torch.cat([b.value[name] for b in taken]) for name in taken[0].value},
        {name: torch.cat([b.known[name] for b in taken]) for name in taken[0].known},
        torch.cat([b.weight for b in taken]),
        torch.cat([b.row for b in taken]),
    )
