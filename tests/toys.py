"""Three small tasks that hold the contract: continuous, censored and discrete data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from aigc_ray import losses, noise
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Draw, Optimizer, Player, Stage, Task

OPTIMIZER = Optimizer(1e-2, betas=(0.0, 0.9), epsilon=1e-5)


@dataclass(frozen=True, kw_only=True)
class Toy(Task):
    """What the toys share: rows are made, not read, and nobody asks them anything."""

    steps: int = 200
    objective = ("distance", "min")
    chosen: ClassVar[tuple[str, ...]] = ()

    def survey(self, uri):
        return self, []

    def read(self, source):
        yield from ()

    def parse(self, item):
        return dict(item)

    def encode(self, columns, row):
        value = {name: torch.as_tensor(column) for name, column in columns.items()}
        known = {name: torch.ones(len(row), dtype=torch.bool) for name in value}
        return Batch(value, known, torch.ones(len(row)), row)

    def recognise(self, networks, batch):
        return {}

    def score(self, networks, batch, target):
        return target

    def answer(self, prediction, record):
        return {}

    def generate(self, model, request):
        yield from ()

    def measure(self, prediction, value, known):
        return {}

    def sample(self, model):
        return b""

    def pictures(self, model, data):
        yield from ()


class Mlp(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(
            nn.Linear(inputs, 32), nn.LeakyReLU(0.2), nn.Linear(32, outputs, bias=bias)
        )


@dataclass(frozen=True, kw_only=True)
class Ring(Toy):
    """Continuous: points of the plane given their class, which sits at +2 or −2."""

    name: ClassVar[str] = "ring"
    schema: Schema = Schema(
        (
            Field(name="point", kind="number", parts=("generated", "input"), shape=(2,)),
            Field(name="side", kind="number", parts=("condition", "target"), shape=(1,)),
        )
    )

    def networks(self):
        return nn.ModuleDict(
            {"generator": Mlp(5, 2), "critic": Mlp(3, 1, bias=False), "recogniser": Mlp(2, 1)}
        )

    def draw(self, networks, condition):
        z = noise.normal(condition.row, "z", (4,))
        point = networks["generator"](torch.cat([z, condition.value["side"]], 1))
        return Draw({"point": point}, None)

    def stages(self):
        def critic(networks, real, fake, step):
            both = torch.cat([real.value["point"], fake.value["point"]]).requires_grad_()
            side = real.value["side"].repeat(2, 1)
            logits = networks["critic"](torch.cat([both, side], 1))[:, 0]
            penalty = losses.gradient_penalty(logits, both).view(2, -1).sum(0)
            won = losses.relativistic(*logits.chunk(2), real.weight, step.mean)
            return won + 0.1 * step.mean(penalty, real.weight)

        def generator(networks, real, fake, step):
            def logits(point):
                return networks["critic"](torch.cat([point, real.value["side"]], 1))[:, 0]

            return losses.relativistic(
                logits(fake.value["point"]), logits(real.value["point"]), real.weight, step.mean
            )

        def recogniser(networks, real, fake, step):
            logits = networks["recogniser"](real.value["point"])
            loss = losses.recognition(logits, (real.value["side"] > 0).float())
            return step.mean(loss, real.weight)

        return (Stage("adversarial", self.steps, _players(critic, recogniser, generator)),)


@dataclass(frozen=True, kw_only=True)
class Waiting(Toy):
    """Censored: exponential times with mean exp(x), seen only up to a censoring time.

    The players need a batch-wide mean inside a non-linear function, as a calibration term does.
    """

    name: ClassVar[str] = "waiting"
    schema: Schema = Schema(
        (
            Field(name="x", kind="number", parts=("condition", "input"), shape=(1,)),
            Field(name="time", kind="number", parts=("generated", "target"), shape=(1,)),
            Field(name="event", kind="number", parts=("generated", "target"), shape=(1,)),
        )
    )

    def networks(self):
        return nn.ModuleDict({"generator": Mlp(1, 1), "critic": Mlp(3, 1, bias=False)})

    def encode(self, columns, row):
        batch = super().encode(columns, row)
        return batch._replace(known=batch.known | {"time": batch.value["event"][:, 0] > 0})

    def draw(self, networks, condition):
        rate = torch.exp(-networks["generator"](condition.value["x"]))
        return Draw({"time": -torch.log1p(-noise.uniform(condition.row, "t", (1,))) / rate}, None)

    def stages(self):
        def observed(batch, time):
            censored = ~batch.known["time"][:, None]
            seen = torch.where(censored, torch.minimum(time, batch.value["time"]), time)
            return torch.cat([batch.value["x"], seen, censored.float()], 1)

        def critic(networks, real, fake, step):
            logits = [
                networks["critic"](observed(real, time))[:, 0]
                for time in (real.value["time"], fake.value["time"])
            ]
            return losses.relativistic(*logits, real.weight, step.mean)

        def likelihood(networks, real, fake, step):
            log_mean = networks["generator"](real.value["x"])[:, 0]
            hazard = real.value["time"][:, 0] * torch.exp(-log_mean)
            loss = step.mean(hazard + real.known["time"] * log_mean, real.weight)
            survival = step.mean(torch.exp(-hazard), real.weight)
            return loss + 0.1 * (survival - 0.5) ** 2

        def generator(networks, real, fake, step):
            won = losses.relativistic(
                networks["critic"](observed(real, fake.value["time"]))[:, 0],
                networks["critic"](observed(real, real.value["time"]))[:, 0],
                real.weight,
                step.mean,
            )
            return likelihood(networks, real, fake, step) + 0.1 * won

        first = Stage("likelihood", self.steps // 2, (Player("generator", likelihood, OPTIMIZER),))
        return (first, Stage("adversarial", self.steps - first.steps, _players(critic, generator)))


@dataclass(frozen=True, kw_only=True)
class Letters(Toy):
    """Discrete: words of three letters, learned through the critic's weights on log-probabilities,
    with a pool of samples that serves several steps."""

    name: ClassVar[str] = "letters"
    schema: Schema = Schema(
        (Field(name="word", kind="number", parts=("generated", "input"), shape=(3,)),)
    )

    def networks(self):
        table = nn.ParameterDict({"letters": nn.Parameter(torch.zeros(3, 4))})
        return nn.ModuleDict({"generator": table, "critic": Mlp(12, 1, bias=False)})

    def draw(self, networks, condition):
        p = networks["generator"]["letters"].softmax(1)
        u = noise.uniform(condition.row, "word", (3, 1))
        word = (u > p.cumsum(1)[None]).sum(2).clamp(max=3)
        return Draw({"word": word}, self._log_probability(networks, word))

    def _log_probability(self, networks, word):
        return networks["generator"]["letters"].log_softmax(1)[torch.arange(3), word].sum(1)

    def stages(self):
        def logits(networks, word):
            return networks["critic"](F.one_hot(word, 4).float().flatten(1))[:, 0]

        def critic(networks, real, fake, step):
            pair = logits(networks, real.value["word"]), logits(networks, fake.value["word"])
            return losses.classic_critic(*pair, real.weight, step.mean)

        def generator(networks, real, fake, step):
            weight = torch.exp(logits(networks, fake.value["word"])).clamp(0.125, 8).detach()
            weight = weight / step.mean(weight, real.weight)
            log_probability = self._log_probability(networks, fake.value["word"])
            return -step.mean(weight * log_probability, real.weight)

        return (Stage("adversarial", self.steps, _players(critic, generator), refresh=5),)


def _players(*functions: Callable) -> tuple[Player, ...]:
    names = [
        "generator" if f.__name__ in ("generator", "likelihood") else f.__name__ for f in functions
    ]
    return tuple(Player(n, f, OPTIMIZER) for n, f in zip(names, functions, strict=True))


def rows(task: Toy, number: torch.Tensor) -> dict[str, torch.Tensor]:
    """The made rows with these numbers."""
    row = noise.keys(99, number)
    x = noise.normal(row, "x", (2,))
    if isinstance(task, Ring):
        side = torch.where(noise.uniform(row, "side", (1,)) < 0.5, -1.0, 1.0)
        return {"point": 0.3 * x + 2 * side, "side": side}
    if isinstance(task, Waiting):
        time = -torch.log1p(-noise.uniform(row, "time", (1,))) * torch.exp(x[:, :1])
        end = 2 * noise.uniform(row, "end", (1,))
        return {"x": x[:, :1], "time": torch.minimum(time, end), "event": (time < end).float()}
    first = (noise.uniform(row, "word", ()) < 0.8).long()
    return {"word": torch.stack([first, 1 + first, torch.full_like(first, 3)], 1)}


def batch(task: Toy, step: int, size: int = 64, share: tuple[int, int] = (0, 1)) -> Batch:
    """Worker `share[0]`'s part of a step's rows."""
    part = size // share[1]
    number = torch.arange(step * size + share[0] * part, step * size + (share[0] + 1) * part)
    return task.encode(rows(task, number), noise.keys(0, number))
