"""Proteins: backbones of 64 residues are generated, and what a backbone is made of recognised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import losses, noise, recognition
from aigc_ray.blocks import bf16_pays
from aigc_ray.errors import UserError
from aigc_ray.model import Model
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
)
from aigc_ray.tasks.proteins import data, decoys, design, geometry, metrics, pictures, sources
from aigc_ray.tasks.proteins.assignment import assign
from aigc_ray.tasks.proteins.data import LABEL, STATES, STRUCTURE, TRACE
from aigc_ray.tasks.proteins.networks import (
    NOISE,
    Critic,
    Generator,
    Recogniser,
    Unedited,
    untangled,
)
from aigc_ray.tasks.proteins.recovery import recover
from aigc_ray.tasks.proteins.structures import WINDOW
from aigc_ray.tasks.proteins.walks import TURNS, Walks

LOOKED_AT = 50_000  # training windows that walks are fitted to, at most
BLURRED = 0.6  # angstrom of error that the recogniser is shown, at most
SEEN_CLEAN = 0.4  # share of windows that are shown nearly as they are, and told from decoys
CLEAN = 0.1  # of the error there
BLOCK = 8  # residues a side that an explanation hides at a time
EXPLAINED = 8  # windows that attributions are tried on
JOINS = 0.1  # share of the training after which the critic has something to say to the generator
ODDS = 3.0  # times the critic's logits: with its slope held down they say less than the odds are
NEAREST = 3.7  # angstrom that residues which are no neighbours are kept apart in training


@dataclass(frozen=True, kw_only=True)
class Proteins(Task):
    """A backbone of 64 residues, as the map of its CA atoms' distances, with what it is made of."""

    name: ClassVar[str] = "proteins"
    objective: ClassVar[tuple[str, Literal["min", "max"]]] = ("auc", "max")
    chosen: ClassVar[tuple[str, ...]] = ("recogniser",)
    unique: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    chunk: ClassVar[int] = 100
    without: ClassVar[str | None] = "unedited"
    personal: ClassVar[bool] = False
    draws: ClassVar[int] = 100

    stride: int = sources.STRIDE  # residues between the starts of windows
    loss: Literal["relativistic", "classic"] = "relativistic"
    steps: int = 3000
    candidates: int = 8  # walks, of which the critic lets one pass
    width: int = 48  # of generator and critic
    recogniser_width: int = 48
    recogniser_dropout: float = 0.2
    penalty: float = 1.0  # gamma of R1 and R2
    penalty_every: int = 4  # steps
    class_weight: float = 0.5  # of the critic's class head
    clash_weight: float = 0.02  # of residues that come too near
    strange_weight: float = 0.5  # of turns that real chains do not have
    adversary_rate: float = 6e-4
    recogniser_rate: float = 5e-3
    references: int = 4_000  # training windows that the model keeps, to show the nearest
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        counts = ("stride", "steps", "candidates", "width", "recogniser_width", "penalty_every")
        for key in (*counts, "references"):
            if getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 1; got {getattr(self, key)}")
        for key in ("penalty", "class_weight", "clash_weight", "strange_weight"):
            if not getattr(self, key) >= 0:
                raise UserError(f"task.{key} is 0 or more; got {getattr(self, key)}")
        if not 0 <= self.recogniser_dropout < 1:
            raise UserError(
                f"task.recogniser_dropout is at least 0 and below 1; got {self.recogniser_dropout}"
            )
        if self.width % 8 or self.recogniser_width % 8:
            raise UserError("task.width and task.recogniser_width are multiples of 8")

    # --- data -------------------------------------------------------------------------------

    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        return replace(self, schema=data.schema()), sources.survey(uri, self.stride)

    def read(self, source: Source) -> Iterator[Record | Reject]:
        return data.read(source, self.schema, self.stride)

    def parse(self, item: Mapping[str, Any]) -> Record:
        return data.parse(item)

    def encode(self, columns: Columns, row: Tensor) -> Batch:
        return data.encode(columns, row)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema[LABEL].values

    # --- learning ---------------------------------------------------------------------------

    def networks(self) -> Networks:
        classes = len(self.classes)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = self.precision == "bf16" or (self.precision == "auto" and bf16_pays(device))
        made: dict[str, nn.Module] = {
            "generator": Generator(classes, self.width, bf16=bf16),
            "critic": Critic(classes, self.width, bf16=bf16),
            "recogniser": Recogniser(
                classes, len(STATES), self.recogniser_width, self.recogniser_dropout
            ),
            "walks": Walks(classes),
            "unedited": Unedited(),
            "memory": Memory(self.references),
        }
        return nn.ModuleDict(made)

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:
        traces, labels = [], []
        for batch in rows:
            traces.append(batch.value[TRACE])
            labels.append(batch.value[LABEL])
            if sum(map(len, traces)) >= LOOKED_AT:
                break
        trace, label = torch.cat(traces), torch.cat(labels)
        _walks(networks).fit(trace, label)
        _memory(networks).keep(trace)

    def stages(self) -> tuple[Stage, ...]:
        adversary = Optimizer(self.adversary_rate, betas=(0.0, 0.95))
        learner = Optimizer(
            self.recogniser_rate, (0.9, 0.999), weight_decay=0.01, final=0.0, warm_up=0.05
        )
        players = (
            Player("critic", self._critic_loss, adversary),
            Player("recogniser", self._recogniser_loss, learner),
            Player("generator", self._generator_loss, adversary, joins=JOINS),
        )
        return (Stage("adversarial", self.steps, players),)

    def space(self) -> dict[str, tuple[Any, ...]]:
        return {
            "recogniser_rate": ("log", 1e-3, 1e-2),
            "recogniser_dropout": ("linear", 0.0, 0.5),
            "adversary_rate": ("log", 1e-4, 2e-3),
            "penalty": ("log", 0.1, 5.0),
        }

    def draw(self, networks: Networks, condition: Batch) -> Draw:
        """Structures for the rows' classes: in training as the generator makes them; otherwise of
        several the one that the critic lets pass, without overlaps (`made`), and recovered from
        its map, with bonds and distances that chains have. Walks without an edit are taken as they
        come."""
        label, row, size = condition.value[LABEL], condition.row, len(condition.row)
        generator = networks["generator"]
        edits = isinstance(generator, Generator)
        count = self.candidates if edits and not networks.training else 1
        every = label.repeat_interleave(count)
        random = noise.uniform(row, "walks", (count, TURNS)).flatten(0, 1)
        normal = noise.normal(row, "turns", (count, TURNS, 2)).flatten(0, 1)
        z = noise.normal(row, "generator", (count, NOISE)).flatten(0, 1)
        trace = generator(*_walks(networks).say(every, random, normal), z, every)
        if networks.training:
            return Draw({TRACE: trace, LABEL: label}, None)
        if count > 1:
            logits = networks["critic"](geometry.image(trace), every)[0].view(size, count)
            place = noise.pick(ODDS * logits, noise.uniform(row, "choice", (count,)))
            trace = trace.view(size, count, WINDOW, 3)[torch.arange(size, device=row.device), place]
        made = untangled(trace)
        found = recover(geometry.distances(made), geometry.chirality(made))
        states = np.stack([assign(ca) for ca in found.ca.numpy(force=True)])
        structure = torch.from_numpy(states).long().to(label.device) + 1
        return Draw({TRACE: found.ca, "made": made, STRUCTURE: structure, LABEL: label}, None)

    def _critic_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        critic, label = networks["critic"], real.value[LABEL]
        # At some steps only, and as much more there (Karras et al. 2020, "lazy regularization").
        gamma = self.penalty * self.penalty_every * (step.number % self.penalty_every == 0)
        loss, classes = losses.critic(
            lambda image, _: critic(image, label),
            geometry.image(real.value[TRACE]),
            geometry.image(fake.value[TRACE]),
            real.weight,
            step.mean,
            loss=self.loss,
            gamma=gamma,
        )
        told = losses.recognition(classes, label)
        return loss + self.class_weight * step.mean(told, real.weight * real.known[LABEL])

    def _generator_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        label, trace = real.value[LABEL], fake.value[TRACE]
        logits, _ = networks["critic"](geometry.image(trace), label)
        if self.loss == "classic":
            loss = losses.classic_generator(logits, real.weight, step.mean)
        else:
            with torch.no_grad():
                real_logits, _ = networks["critic"](geometry.image(real.value[TRACE]), label)
            loss = losses.relativistic(logits, real_logits, real.weight, step.mean)
        apart = self.clash_weight * step.mean(_crowded(trace), real.weight)
        strange = step.mean(_walks(networks).strange(trace), real.weight)
        step.log("strange", strange.detach())
        return loss + apart + self.strange_weight * strange

    def _recogniser_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """Secondary structure and class of windows with errors, real ones and generated ones, of
        which there are as many as one likes; clean real ones against decoys of them."""
        recogniser: Any = networks["recogniser"]
        trace, row, size = real.value[TRACE], real.row, len(real.row)
        sigma = BLURRED * noise.uniform(row, "sigma", (1,))[:, 0].sqrt()
        clean = noise.uniform(row, "clean", (1,))[:, 0] < SEEN_CLEAN
        sigma = torch.where(clean, CLEAN * sigma, sigma)
        (known,) = clean.nonzero(as_tuple=True)  # as real ones
        other = _memory(networks).partner(row[known])
        shown = [
            decoys.shaken(trace, row, sigma, "blur"),
            decoys.decoys(trace[known], other, row[known]),
        ]
        right = [real.value[STRUCTURE] - 1]
        if fake is not None:
            made = fake.value[TRACE].detach()
            shown.append(decoys.shaken(made, row, sigma, "blur of generated"))
            states = np.stack([assign(ca) for ca in made.numpy(force=True)])
            right.append(torch.from_numpy(states).long().to(made.device))
        # All together: the norm has statistics over what it is shown.
        image = geometry.image(torch.cat(shown))
        along = recogniser.along_chain(image)
        first, *rest = along.split([len(part) for part in shown])
        state = recogniser.state(torch.cat([first, *rest[1:]]))
        told = F.cross_entropy(state.transpose(1, 2), torch.cat(right), reduction="none").mean(1)
        loss = step.mean(told[:size], real.weight * real.known[STRUCTURE])
        if fake is not None:
            loss = loss + step.mean(told[size:], real.weight)
        labelled = losses.recognition(recogniser.kind(state[:size]), real.value[LABEL])
        loss = loss + 0.5 * step.mean(labelled, real.weight * real.known[LABEL])
        judged = torch.cat([known, torch.arange(size, size + len(known), device=known.device)])
        real_logits = recogniser.realness(image[judged], along[judged])
        wrong = F.softplus(-real_logits[: len(known)]) + F.softplus(real_logits[len(known) :])
        told_apart = wrong.new_zeros(size).index_put((known,), wrong / SEEN_CLEAN)
        return loss + 0.5 * step.mean(told_apart, real.weight)

    def doubts(self, rows: Iterator[Batch]) -> list[str]:
        return [
            "the classes are weak labels: what a window of 64 residues is made of, by shares of "
            "the helix and strand that P-SEA assigns to its CA atoms, not a fold of SCOP or CATH",
            "relatives are told by sequence identity, so that remote ones may lie in two splits",
        ]

    def perturb(self, batch: Batch) -> Batch:
        """As another experiment might have placed the atoms."""
        trace = decoys.shaken(batch.value[TRACE], batch.row, 0.3, "elsewhere")
        return batch._replace(value=batch.value | {TRACE: trace})

    # --- answers ----------------------------------------------------------------------------

    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """`structure` (B, 64, 3) shares of neither, helix and strand; `probability` (B, K);
        `plausibility` (B,); `features` (B, D) in which windows are compared, and `look` (B, P)."""
        recogniser: Any = networks["recogniser"]
        image = geometry.image(batch.value[TRACE])
        along = recogniser.along_chain(image)
        features, state = recogniser.features(image, along), recogniser.state(along)
        found = {
            "structure": state.softmax(2),
            "probability": recogniser.kind(state).softmax(1),
            "plausibility": torch.sigmoid(recogniser.real(features)[:, 0]),
            "features": features,
            "look": F.adaptive_avg_pool2d(image[:, :1], 8).flatten(1),
        }
        if "critic" in networks:
            found["critic"] = networks["critic"](image, batch.value[LABEL])[1].softmax(1)
        return found

    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        return _scored(networks, geometry.image(batch.value[TRACE]), target)

    def explain(self, model: Model, record: Record) -> dict[str, Any] | None:
        """By how much the score of the likeliest class falls where blocks of residue pairs are
        hidden behind what such pairs have on average."""
        gate = model.info.get("explanation")
        if gate is not None and not gate["passes"]:
            return {"withheld": "this model's attributions do not hang on what it learned"}
        trace = torch.from_numpy(record[TRACE])[None]
        target = int(design.recognised(model, trace)["probability"][0].argmax())
        every = [self._effects(one, trace, target) for one in model.members]
        effect = torch.stack(every).mean(0)
        name = self.classes[target]
        return {
            "method": "hiding blocks of residue pairs",
            "of": name,
            "image": pictures.pairs(trace[0], effect, f"what speaks for {name}"),
        }

    @torch.no_grad()
    def _effects(self, networks: Networks, trace: Tensor, target: int) -> Tensor:
        """(64, 64) the fall of the score where the block around each pair is hidden."""
        image = geometry.image(trace)
        usual = geometry.image(_memory(networks).usual())[0]
        blocks = WINDOW // BLOCK
        where = [(i, j) for i in range(blocks) for j in range(i, blocks)]
        hidden = image.repeat(len(where), 1, 1, 1)
        for place, (i, j) in enumerate(where):
            a, b = (slice(k * BLOCK, (k + 1) * BLOCK) for k in (i, j))
            hidden[place, :, a, b], hidden[place, :, b, a] = usual[:, a, b], usual[:, b, a]
        chosen = torch.full((len(where) + 1,), target)
        scores = _scored(networks, torch.cat([image, hidden]), chosen)
        found = torch.zeros(blocks, blocks)
        for (i, j), score in zip(where, scores[1:], strict=True):
            found[i, j] = found[j, i] = scores[0] - score
        return found.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)

    def accounted(self, model: Model, batch: Batch) -> dict[str, Any] | None:
        """Attributions beside those of networks that learned nothing (Adebayo et al. 2018)."""
        from aigc_ray import explanation

        with torch.random.fork_rng():
            torch.manual_seed(0)
            fresh = Networks({**model.members[0], "recogniser": self.networks()["recogniser"]})
        fresh.eval()
        pairs = (
            [
                self._effects(one, trace[None], 0)[::BLOCK, ::BLOCK].flatten().numpy()
                for one in (model.members[0], fresh)
            ]
            for trace in batch.value[TRACE][:EXPLAINED]
        )
        return explanation.beside_untrained("hiding blocks of residue pairs", pairs)

    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        shares, states = prediction["structure"], prediction["structure"].argmax(1)
        named = {
            name: round(float(p), 6)
            for name, p in zip(self.classes, prediction["probability"], strict=True)
        }
        about: dict[str, Any] = {}
        if "chain" in record:
            about = {key: record[key] for key in ("chain", "residues", "sequence")}
        return about | {
            "label": self.classes[int(prediction["probability"].argmax())],
            "probabilities": named,
            "secondary_structure": data.letters(states + 1),
            "secondary_confidence": [round(float(p), 4) for p in shares.max(1)],
            "plausibility": round(float(prediction["plausibility"]), 4),
            "coordinates": [[round(float(x), 3) for x in point] for point in record[TRACE]],
        }

    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """Backbones as PDB files, with their maps and what speaks for them. A request holds `n`,
        `seed`, `class`, and how `plausible` they must be to the recogniser."""
        return design.generate(model, request)

    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        rows = known[LABEL]
        found = recognition.figures(prediction["probability"][rows], value[LABEL][rows])
        if "structure" not in prediction:  # an opinion that is about the class alone
            return found
        states = known[STRUCTURE]
        told = prediction["structure"][states].argmax(2) + 1
        right = told == value[STRUCTURE][states]
        return found | {"structure_acc": float(right.mean()) if len(right) else float("nan")}

    def compared(self, real: Batch, other: Batch) -> dict[str, float]:
        """How contacts spread, what the chains are made of, and how large they are."""
        a, b = (batch.value[TRACE] for batch in (other, real))
        contacts = metrics.contact_js(*(geometry.distances(trace) for trace in (a, b)))
        return {
            "contact_js": contacts,
            "secondary_js": metrics.secondary_js(a, b),
            "radius_gap": abs(metrics.radius_ratio(a) / metrics.radius_ratio(b) - 1),
            "clash_rate": metrics.clash_rate(a).pairs,
        }

    def sample(self, model: Model) -> bytes:
        return pictures.maps(self._samples(model, pictures.SHOWN))

    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        real = batch.value[TRACE]
        made = self._samples(model, 64)
        yield "Distance maps of real windows", pictures.maps(real)
        yield "Distance maps of generated windows", pictures.maps(made)
        yield "Real backbones", pictures.shapes(real)
        yield "Generated backbones", pictures.shapes(made)
        yield "Contacts by how far apart residues are", pictures.contacts(real, made)

    def _samples(self, model: Model, n: int) -> Tensor:
        label = torch.arange(n) % len(self.classes)
        return design.drawn(model, label, noise.keys(0, torch.arange(n)))


class Memory(nn.Module):
    """Training windows that generated ones are compared with."""

    trace: Tensor  # (references, 64, 3)
    kept: Tensor  # (references,) bool

    def __init__(self, references: int) -> None:
        super().__init__()
        self.register_buffer("trace", torch.zeros(references, WINDOW, 3))
        self.register_buffer("kept", torch.zeros(references, dtype=torch.bool))

    def keep(self, trace: Tensor) -> None:
        """Of windows (N, 64, 3) in random order the first."""
        count = min(len(trace), len(self.trace))
        self.trace[:count] = trace[:count]
        self.kept[:count] = True

    def partner(self, row: Tensor) -> Tensor:
        """(B, 64, 3) a kept window for each row, the same whatever shares its batch."""
        count = int(self.kept.sum())
        drawn = noise.uniform(row, "partner", (1,))[:, 0] * max(1, count)
        return self.trace[drawn.long().clamp(max=max(0, count - 1))]

    def usual(self) -> Tensor:
        """(1, 64, 3) the one among a few whose map is nearest to their mean."""
        some = self.trace[self.kept][:64]
        if not len(some):  # of an untrained network
            some = self.trace[:1]
        maps = geometry.distances(some)
        away = (maps - maps.mean(0)).square().sum((1, 2))
        return some[away.argmin()][None]


def _walks(networks: Networks) -> Walks:
    found = networks["walks"]
    assert isinstance(found, Walks)
    return found


def _memory(networks: Networks) -> Memory:
    found = networks["memory"]
    assert isinstance(found, Memory)
    return found


def _scored(networks: Networks, image: Tensor, target: Tensor) -> Tensor:
    recogniser: Any = networks["recogniser"]
    classes = recogniser.kind(recogniser.state(recogniser.along_chain(image)))
    found: Tensor = classes.gather(1, target[:, None])[:, 0]
    return found


def _crowded(trace: Tensor) -> Tensor:
    """(B,) by how much residues that are no neighbours lie nearer than they can, angstrom."""
    row, column = torch.triu_indices(WINDOW, WINDOW, metrics.FIRST, device=trace.device)
    return F.relu(NEAREST - geometry.distances(trace)[:, row, column]).sum(1)
