"""Prognosis: a patient's time to an event is predicted, and cohorts of patients are generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import fidelity, losses, noise
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.schema import Field
from aigc_ray.task import (
    Batch,
    Columns,
    Draw,
    Item,
    Networks,
    Optimizer,
    Player,
    Record,
    Reject,
    Shortfall,
    Source,
    Stage,
    Step,
    Task,
    whole,
)
from aigc_ray.tasks.prognosis import cohorts, data, metrics, pictures
from aigc_ray.tasks.prognosis.networks import Cohort, Critic, Encoder, Times

LOOKED_AT = 50_000  # training rows that distributions are taken from, at most
FINE = 4  # points of a curve in each interval of constant hazard
BEYOND = 1.5  # times the end of the follow-up, where the last point of a curve lies
MOST_GENERATED = 100_000  # rows in one request
CHUNK = 1024  # that are drawn at a time
EXPLAINED, MISSED = 8, 0.01  # patients that attributions are tried on, and what they may miss
PATH = 64  # points between the mean of the training rows and a patient, of an explanation
SUSPECTED, LEAK = 2000, 0.95  # rows, and concordance of one feature above which it is suspicious
LEVELS = (0.05, 0.95)  # between which the members' curves and an interval of time lie


class Patients(NamedTuple):
    """The columns of patients, as the networks take them."""

    number: Tensor  # (B, numbers)
    known: Tensor  # (B, numbers) bool
    kinds: list[Tensor]  # for each column of categories (B, count + 1), the last: missing


class Observed(NamedTuple):
    """What is known of an end: a time, and whether the event happened then."""

    time: Tensor  # (B,)
    event: Tensor  # (B,) 0 or 1


@dataclass(frozen=True, kw_only=True)
class Prognosis(Task):
    """A patient with a time, and whether it is that of the event or of being lost from sight."""

    name: ClassVar[str] = "prognosis"
    objective: ClassVar[tuple[str, Literal["min", "max"]]] = ("nll", "min")
    chosen: ClassVar[tuple[str, ...]] = ("recogniser",)
    headline: ClassVar[str | None] = "harrell_c"
    tabular: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    drawings: ClassVar[int] = 5
    draws: ClassVar[int] = 100  # every pair of patients is looked at

    columns: str | None = None  # a JSON file that says what the columns are; None: inferred
    steps: int = 200  # in which curves are learned
    critic_steps: int = 200  # after them, in which a critic learns to tell generated patients
    candidates: int = 8  # generated patients of which the critic lets one pass
    mixture: int = 16  # members of the recogniser's mixture, which share most of their weights
    bins: int = 16  # intervals of constant hazard
    width: int = 64
    depth: int = 1
    waves: int = 3  # cosines by which a patient's hazard differs from the others' over time
    dropout: float = 0.1
    hidden: float = 0.05  # share of values that are hidden in training, so that any may be missing
    penalty: float = 0.1  # gamma of R1 and R2
    critic_width: int = 64
    critic_rate: float = 3e-3
    recogniser_rate: float = 2e-3

    def __post_init__(self) -> None:
        at_least_one = ("steps", "mixture", "bins", "width", "depth", "waves", "critic_width")
        for key in (*at_least_one, "candidates"):
            if getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 1; got {getattr(self, key)}")
        for key in ("dropout", "hidden"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 0 and below 1; got {getattr(self, key)}")
        for key in ("critic_steps", "penalty"):
            if not getattr(self, key) >= 0:
                raise UserError(f"task.{key} is 0 or more; got {getattr(self, key)}")

    # --- data -------------------------------------------------------------------------------

    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        schema, sources = data.survey(uri, self.columns)
        return replace(self, schema=schema), sources

    def read(self, source: Source) -> Iterator[Record | Reject]:
        return data.read(source, self.schema)

    def parse(self, item: Mapping[str, Any]) -> Record:
        return data.parse(item, self.schema)

    def encode(self, columns: Columns, row: Tensor) -> Batch:
        return data.encode(columns, row, self.schema)

    def _fields(self) -> tuple[list[Field], list[Field]]:
        """The columns that hold numbers, and those that hold categories without an order.

        Where categories have an order, their index is a number.
        """
        inputs = list(self.schema.part("input"))
        numbers = [field for field in inputs if field.kind == "number" or field.ordered]
        return numbers, [field for field in inputs if field not in numbers]

    def _patients(self, batch: Batch) -> Patients:
        numbers, categories = self._fields()
        size = len(batch.row)
        number = torch.zeros(size, 0, device=batch.row.device)
        known = number > 0
        if numbers:
            number = torch.stack([batch.value[field.name].float() for field in numbers], 1)
            known = torch.stack([batch.known[field.name] for field in numbers], 1)
        kinds = []
        for field in categories:
            count = len(field.values)
            code = torch.where(batch.known[field.name], batch.value[field.name], count)
            kinds.append(F.one_hot(code, count + 1).float())
        return Patients(number, known, kinds)

    # --- learning ---------------------------------------------------------------------------

    def networks(self) -> Networks:
        numbers, categories = self._fields()
        counts = tuple(len(field.values) for field in categories)

        def encoder() -> Encoder:
            return Encoder(len(numbers), counts)

        return nn.ModuleDict(
            {
                "generator": Cohort(len(numbers), counts),
                "critic": Critic(encoder(), self.critic_width),
                "recogniser": Times(
                    encoder(),
                    members=self.mixture,
                    bins=self.bins,
                    width=self.width,
                    depth=self.depth,
                    waves=self.waves,
                    dropout=self.dropout,
                ),
                # When patients are lost from sight hangs on who they are, too.
                "censoring": Times(
                    encoder(), members=4, bins=self.bins, width=32, depth=1, waves=3,
                    dropout=self.dropout,
                ),
            }
        )  # fmt: skip

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:
        """Distributions of columns and times, and how columns hang together."""
        taken: list[Batch] = []
        for batch in rows:
            taken.append(batch)
            if sum(len(one.row) for one in taken) >= LOOKED_AT:
                break
        parts = [self._patients(batch) for batch in taken]
        number = torch.cat([part.number for part in parts])
        known = torch.cat([part.known for part in parts])
        kinds = [torch.cat(column) for column in zip(*(part.kinds for part in parts), strict=True)]
        for encoder in (
            _critic(networks).encoder,
            *(_times(networks, name).encoder for name in ("recogniser", "censoring")),
        ):
            encoder.fit(number, known, kinds)
        codes = [column.argmax(1) for column in kinds]
        _cohort(networks).fit(number, known, codes)
        told = torch.cat([batch.known["event"] for batch in taken])
        time = torch.cat([batch.value["time"] for batch in taken])[told]
        event = torch.cat([batch.value["event"] for batch in taken])[told] > 0
        if not event.any():
            raise UserError(
                "event: it happened to none of the training rows, so nothing is learned"
            )
        _critic(networks).clock.fit(time)
        _times(networks, "recogniser").fit(time, event)
        _times(networks, "censoring").fit(time, ~event)

    def doubts(self, rows: Iterator[Batch]) -> list[str]:
        """Features that tell the outcome too well by themselves: they may have been written down
        after it, or from it."""
        taken = fidelity.joined(rows, SUSPECTED)
        found = []
        for field in self.schema.part("input"):
            concordance = metrics.alone(taken, field.name)
            if concordance > LEAK:
                found.append(
                    f"{field.name} by itself ranks patients with a concordance of "
                    f"{concordance:.3f}: it may hold the outcome, and then what was learned is "
                    "worth nothing"
                )
        return found

    def stages(self) -> tuple[Stage, ...]:
        learner = Optimizer(self.recogniser_rate, (0.9, 0.99), weight_decay=1e-3, final=0.0)
        players = (
            Player("recogniser", self._recogniser_loss, learner),
            # When patients are lost from sight hangs on who they are, too.
            Player("censoring", self._censoring_loss, learner),
        )
        likelihood = Stage("likelihood", self.steps, players, refresh=0)
        if not self.critic_steps:
            return (likelihood,)
        judge = Optimizer(self.critic_rate, (0.9, 0.99), final=0.1)
        critic = Player("critic", self._critic_loss, judge)
        return likelihood, Stage("adversarial", self.critic_steps, (critic,))

    def space(self) -> dict[str, tuple[Any, ...]]:
        return {
            "recogniser_rate": ("log", 1e-3, 1e-2),
            "width": ("choice", 32, 64, 128),
            "depth": ("choice", 1, 2),
            "waves": ("choice", 2, 3, 4),
            "dropout": ("linear", 0.0, 0.4),
        }

    def draw(self, networks: Networks, condition: Batch) -> Draw:
        """Whole patients, each with an end that was seen; nothing is taken from `condition` but the
        noise.

        While the critic learns it is shown patients as they are made. From then on it lets one of
        several candidates pass, each with the odds that it gives it of being real: what it has
        found out about the generator is made good (sampling importance resampling, Rubin 1988; by a
        discriminator's odds, Azadi et al. 2019, "Discriminator rejection sampling").
        """
        count = 1 if networks.training or not self.critic_steps else self.candidates
        if count == 1:
            made = self._made(networks, condition.row)
        else:
            size = len(condition.row)
            every = noise.bits(condition.row, "candidates", (count,)).flatten()
            candidates = self._made(networks, every)
            logit = _critic(networks)(self._read(networks, candidates))
            random = noise.uniform(condition.row, "choice", (count,))
            place = noise.pick(logit.reshape(size, count), random)
            made = candidates.take(torch.arange(size, device=place.device) * count + place)
        return Draw(made.value, None, made.known)

    def _made(self, networks: Networks, row: Tensor) -> Batch:
        """A patient a row, as the generator makes them, with an end that was seen."""
        generator = _cohort(networks)
        number, told, codes = generator(noise.normal(row, "patient", (generator.scores,)))
        numbers, categories = self._fields()
        value: dict[str, Tensor] = {}
        known: dict[str, Tensor] = {}
        for place, field in enumerate(numbers):
            known[field.name] = told[:, place]
            column = torch.where(told[:, place], number[:, place], 0.0)
            if field.kind == "category":
                column = column.round().long().clamp(0, len(field.values) - 1)
            value[field.name] = column
        for field, code in zip(categories, codes, strict=True):
            known[field.name] = code < len(field.values)
            value[field.name] = torch.where(known[field.name], code, 0)
        made = Batch(value, known, torch.ones(len(row), device=row.device), row)
        end = self._followed(networks, self._patients(made), row)
        value |= {"time": end.time, "event": end.event}
        known |= {"time": end.event > 0.5, "event": torch.ones_like(end.event, dtype=torch.bool)}
        return made

    def _followed(self, networks: Networks, patients: Patients, row: Tensor) -> Observed:
        """How patients are seen to end."""
        event = self._drawn(networks, "recogniser", patients, row)
        lost = self._drawn(networks, "censoring", patients, row)
        lost = lost.clamp(max=_times(networks, "censoring").edges[-1])  # nobody is followed longer
        return Observed(torch.minimum(event, lost), (event <= lost).float())

    def _drawn(self, networks: Networks, name: str, patients: Patients, row: Tensor) -> Tensor:
        """(B,) times that a network says, each by a member of its mixture."""
        network = _times(networks, name)
        random = noise.uniform(row, name, (2,))
        member = (random[:, 0] * network.members).long()
        hazards = network.of(network.encoder(*patients), member)
        return network.drawn(hazards, -torch.log1p(-random[:, 1]))

    def _hidden(self, patients: Patients, row: Tensor) -> Patients:
        """The same with a few values missing, so that any value may be."""
        numbers = patients.known.shape[1]
        random = noise.uniform(row, "hidden", (numbers + len(patients.kinds),))
        gone = random < self.hidden
        kinds = []
        for place, kind in enumerate(patients.kinds):
            missing = torch.zeros_like(kind)
            missing[:, -1] = 1
            kinds.append(torch.where(gone[:, numbers + place, None], missing, kind))
        return Patients(patients.number, patients.known & ~gone[:, :numbers], kinds)

    def _recogniser_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        network, told = _times(networks, "recogniser"), real.known["event"]
        patients = self._patients(real)
        hazards = network(network.encoder(*self._hidden(patients, real.row)), real.row)
        likely = network.log_likelihood(hazards, real.value["time"], real.value["event"])
        return -step.mean(_mixture(likely), real.weight * told)

    def _censoring_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        network = _times(networks, "censoring")
        patients = self._hidden(self._patients(real), real.row)
        hazards = network(network.encoder(*patients), real.row)
        lost = 1 - real.value["event"]
        likely = network.log_likelihood(hazards, real.value["time"], lost)
        return -step.mean(_mixture(likely), real.weight * real.known["event"])

    def _read(self, networks: Networks, rows: Batch) -> Tensor:
        """What the critic reads of patients and their ends, without a gradient."""
        critic = _critic(networks)
        with torch.no_grad():
            seen = critic.encoder(*self._patients(rows))
            return critic.joined(seen, rows.value["time"], rows.value["event"])

    def _critic_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        critic, weight = _critic(networks), real.weight * real.known["event"]
        logits, penalties = [], []
        for rows in (real, real._replace(value=fake.value, known=dict(fake.known))):
            # The penalty is on what the critic reads, the patient and the clock.
            seen = self._read(networks, rows).requires_grad_(self.penalty > 0)
            logits.append(critic(seen))
            if self.penalty > 0:
                penalties.append(losses.gradient_penalty(logits[-1], seen))
        loss = losses.relativistic(logits[0], logits[1], weight, step.mean)
        if penalties:
            loss = loss + 0.5 * self.penalty * step.mean(penalties[0] + penalties[1], weight)
        return loss

    # --- answers ----------------------------------------------------------------------------

    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """`survival` (B, T) at `times` (B, T), `low` and `high`, between which nine tenths of the
        mixture's members lie, `risk` (B,), and the `range` (B, numbers, 2) seen in training."""
        network = _times(networks, "recogniser")
        patients = self._patients(batch)
        seen = network.encoder(*patients)
        every = torch.exp(-network.cumulated(network(seen), self._grid(network)[None]))
        levels = torch.tensor(LEVELS, device=every.device)
        ends = torch.quantile(every.transpose(1, 2).contiguous(), levels, dim=2)  # twice as fast
        survival = every.mean(1)
        found = {"survival": survival, "low": ends[0], "high": ends[1]}
        found["times"] = self._grid(network).expand(len(survival), -1)
        # At equal shares of the events: where nobody dies, curves tell nobody apart.
        found["risk"] = -survival[:, FINE:-2:FINE].mean(1)
        ends = network.encoder.cuts[:, [0, -1]]
        found["range"] = ends.expand(len(survival), -1, -1)
        # Rows are compared with their ends: generated patients are told by these too.
        plain = (patients.number - network.encoder.mean) / network.encoder.scale
        plain = torch.where(patients.known, plain.clamp(-4, 4), 0.0)
        outcome = torch.stack([network.share(batch.value["time"]), batch.value["event"]], 1)
        parts = [plain, (~patients.known).float(), *patients.kinds, outcome]
        found["features"] = torch.cat(parts, 1)
        return found

    def _grid(self, network: Times) -> Tensor:
        """(T,) times of a curve's points, from 0 on."""
        edges = network.edges
        shares = torch.arange(FINE, device=edges.device) / FINE
        inner = edges[:-1, None] + edges.diff()[:, None] * shares
        return torch.cat([inner.flatten(), edges[-1:], BEYOND * edges[-1:]])

    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        """The chance (B,) of being without the event at the times `target` (B,)."""
        network = _times(networks, "recogniser")
        hazards = network(network.encoder(*self._patients(batch)))
        gone: Tensor = network.cumulated(hazards, target[:, None])[:, :, 0]
        return torch.exp(-gone).mean(1)

    def compared(self, real: Batch, other: Batch) -> dict[str, float]:
        return cohorts.compared(real, other, self.schema)

    def explain(self, model: Model, record: Record) -> dict[str, Any] | None:
        """How much each feature raises or lowers the chance of being without the event at the first
        of `horizons`, or where half of the training's events had been, against the mean of the
        training rows: integrated gradients (Sundararajan et al. 2017), whose sum is the difference.
        """
        gate = model.info.get("explanation")
        if gate is not None and not gate["passes"]:
            return {"withheld": "this model's attributions do not add up"}
        fields = {f.name: record.get(f.name) for f in self.schema.part("input")}
        columns = {name: np.array([v]) for name, v in fields.items() if v is not None}
        batch = self.encode(columns, torch.zeros(1, dtype=torch.int64))
        return self._attributed(model, batch, record.get("horizons"))

    def accounted(self, model: Model, batch: Batch) -> dict[str, Any] | None:
        """By how much the attributions of a few patients miss the difference they should add to."""
        rows = range(min(EXPLAINED, len(batch.row)))
        found = [self._attributed(model, batch.take(torch.tensor([row])), None) for row in rows]
        missed = max(
            abs(sum(one["attributions"].values()) - (one["survival"] - one["baseline"]))
            for one in found
        )
        method = found[0]["method"]
        return {"method": method, "passes": missed <= MISSED, "largest_miss": round(missed, 6)}

    def _attributed(
        self, model: Model, batch: Batch, horizons: Sequence[float] | None
    ) -> dict[str, Any]:
        from captum.attr import IntegratedGradients

        networks = [_times(member, "recogniser") for member in model.members]
        when = horizons[0] if horizons else float(networks[0].edges[self.bins // 2])
        numbers, categories = self._fields()
        patient = self._patients(batch)
        parts, ends = [], []
        for network in networks:

            def chance(seen: Tensor, network: Times = network) -> Tensor:
                gone = network.cumulated(network(seen), torch.full((1, 1), when))
                return torch.exp(-gone).mean((1, 2))

            seen, centre = network.encoder(*patient), network.encoder.centre[None]
            found = IntegratedGradients(chance).attribute(seen, centre, n_steps=PATH)[0]
            parts.append([float(found[place].sum()) for place in network.encoder.columns()])
            ends.append([float(chance(one).detach()) for one in (seen, centre)])
        names = [field.name for field in (*numbers, *categories)]
        shares = dict(zip(names, np.mean(parts, 0).tolist(), strict=True))
        survival, mean = np.mean(ends, 0).tolist()
        order = sorted(shares, key=lambda name: -abs(shares[name]))
        return {
            "method": "integrated gradients",
            "of": "survival",
            "horizon": when,
            "survival": round(survival, 6),
            "baseline": round(mean, 6),
            "attributions": {name: round(shares[name], 6) for name in order},
        }

    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        return data.answer(prediction, record, self.schema)

    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """New patients, each with an end that was seen: features, `time` and `event`. With
        `patient`, the features of one, times to that patient's event in their place."""
        unknown = set(request) - {"n", "seed", "patient"}
        if unknown:
            raise UserError(f"generate takes n, seed and patient; got {', '.join(sorted(unknown))}")
        n, seed = whole(request, "n", 1, 1, MOST_GENERATED), whole(request, "seed", 0, 0, 2**63)
        patient = request.get("patient")
        record = None if patient is None else self.parse(data.object_of(patient, "patient"))
        for start in range(0, n, CHUNK):
            numbers = torch.arange(start, min(start + CHUNK, n))
            row = noise.keys(seed, numbers)
            if record is None:
                drawn = model.draw(self.encode({}, row))
                items = data.items(drawn.value, drawn.known, self.schema)
            else:
                items = [{"time": time} for time in self._times(model, record, row)]
            for number, item in zip(numbers.tolist(), items, strict=True):
                yield {"seed": seed, "number": number, **item}

    @torch.inference_mode()
    def _times(self, model: Model, record: Record, row: Tensor) -> list[float]:
        """Times to the event of a patient, one a row; beyond the follow-up they are a guess."""
        fields = {f.name: record[f.name] for f in self.schema.part("input")}
        columns = {k: np.full(len(row), v) for k, v in fields.items() if v is not None}
        patients = self._patients(self.encode(columns, row))
        times = self._drawn(model.members[0], "recogniser", patients, row)
        return [float(f"{time:.6g}") for time in times.tolist()]

    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        rows = known["event"]
        found = self.glance(prediction, value, known)
        return found | metrics.figures(
            prediction["times"][0], prediction["survival"][rows], prediction["risk"][rows],
            value["time"][rows], value["event"][rows] > 0.5,
        )  # fmt: skip

    def glance(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        """The likelihood alone: concordances look at all pairs of patients."""
        rows = known["event"]
        curves = prediction["times"][0], prediction["survival"][rows]
        return {"nll": metrics.nll(*curves, value["time"][rows], value["event"][rows] > 0.5)}

    def sample(self, model: Model) -> bytes:
        return pictures.cohort(self, model)

    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        return pictures.told(self, model, batch)


def _mixture(likely: Tensor) -> Tensor:
    """(B,): the logarithm of what members (B, members) say together, each heard alike."""
    return torch.logsumexp(likely, 1) - math.log(likely.shape[1])


def _times(networks: Networks, name: str) -> Times:
    found = networks[name]
    assert isinstance(found, Times)
    return found


def _critic(networks: Networks) -> Critic:
    found = networks["critic"]
    assert isinstance(found, Critic)
    return found


def _cohort(networks: Networks) -> Cohort:
    found = networks["generator"]
    assert isinstance(found, Cohort)
    return found
