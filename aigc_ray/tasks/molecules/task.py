"""Molecules: drug-like structures are generated for a profile, and their activities predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from rdkit import Chem
from scipy.stats import spearmanr
from torch import Tensor, nn

from aigc_ray import calibration, noise
from aigc_ray.blocks import bf16_pays
from aigc_ray.bloom import Bloom
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.schema import Schema
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
    stack,
)
from aigc_ray.tasks.molecules import chemistry, data, design, metrics, pictures, sources, wishes
from aigc_ray.tasks.molecules.chemistry import PROPERTIES
from aigc_ray.tasks.molecules.data import CODES, DESCRIPTORS, ENVIRONMENTS, ROOTED
from aigc_ray.tasks.molecules.networks import PRIOR, Critic, Generator, Memory, Recogniser

LOOKED_AT = 50_000  # training rows that scales are taken from, at most
EXPLAINED, ALIKE = 16, 0.5  # molecules that attributions are tried on, and correlation from which
# they are those of any network
MISSED, STRANGE = 0.1, 0.05  # held-back molecules beyond a margin, and out of the domain
RARE, LEFT_OUT = 3, 0.2  # molecules that have an environment; rows that a voice does not hear
WARM_UP = 0.02  # share of a stage, after which the generator learns at its full rate
ODDS = 8.0  # a sample counts at most so much more, or less, than its fellows
WISH, TOLD = "wish", "told"  # of a draw: the properties (B, P), and which of them it was told


class Wish(NamedTuple):
    """What a generator is told of a molecule before it says it."""

    number: Tensor  # (B, P)
    told: Tensor  # (B, P) bool


@dataclass(frozen=True, kw_only=True)
class Molecules(Task):
    """A drug-like molecule as SMILES, with properties that are computed and activities as given."""

    name: ClassVar[str] = "molecules"
    objective: ClassVar[tuple[str, Literal["min", "max"]]] = ("nats", "min")
    chosen: ClassVar[tuple[str, ...]] = ("generator",)
    tabular: ClassVar[bool] = True
    unique: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    transfers: ClassVar[bool] = False  # nobody has measured a generated molecule's activity
    personal: ClassVar[bool] = False  # training molecules are told, and left out where asked
    chunk: ClassVar[int] = 2000
    without: ClassVar[str | None] = "likelihood"
    identity: ClassVar[str | None] = "smiles"
    draws: ClassVar[int] = 100

    activities: tuple[str, ...] | None = None  # columns; None: those that hold numbers
    split: Literal["scaffold", "random"] = "scaffold"  # of rows whose split is not given
    # Share of training molecules whose properties are computed: three quarters of the time to read
    # one, and of millions a part teaches what properties are.
    computed: float = 1.0
    length: int = 80  # codes of a molecule and its end, at most
    steps: int = 4000  # in which the likelihood of real molecules is raised
    adversarial_steps: int = 1000  # after them, in which generator and critic play
    beside: bool = True  # a copy of the generator that has likelihood alone in those steps too
    width: int = 512
    critic_width: int = 192
    dropout: float = 0.1  # of the critic
    rooted: float = 0.15  # share of SMILES that begin at any atom
    hidden: float = 0.1  # share of molecules of whose properties nothing is told
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    generator_rate: float = 2e-3
    adversarial_rate: float = 2e-4
    critic_rate: float = 5e-4
    voices: int = 4  # perceptrons beside each other that tell activities
    recogniser_width: int = 256
    recogniser_dropout: float = 0.4
    recogniser_rate: float = 1e-3
    recogniser_steps: int = 1500  # before the others, where there are activities
    references: int = 10_000  # training molecules that the model keeps, to show the nearest
    push: float = 0.5  # of the critic's odds, beside the likelihood of real molecules
    penalty: float = 4.0  # of what is no molecule, beside that its odds are none

    def __post_init__(self) -> None:
        for key in ("length", "width", "critic_width", "voices", "recogniser_width"):
            if getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 1; got {getattr(self, key)}")
        for key in ("dropout", "rooted", "hidden", "recogniser_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 0 and below 1; got {getattr(self, key)}")
        if not 0 < self.computed <= 1:
            raise UserError(f"task.computed is above 0 and at most 1; got {self.computed}")
        for key in ("steps", "adversarial_steps", "recogniser_steps", "push", "penalty"):
            if not getattr(self, key) >= 0:
                raise UserError(f"task.{key} is 0 or more; got {getattr(self, key)}")

    # --- data -------------------------------------------------------------------------------

    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        found = sources.survey(uri, self.activities)
        return replace(self, schema=data.schema(self.length, found.activities)), found.pieces

    def read(self, source: Source) -> Iterator[Record | Reject]:
        return data.read(source, self.schema, self.split, self.computed)

    def parse(self, item: Mapping[str, Any]) -> Record:
        return data.parse(item, self.schema)

    def encode(self, columns: Columns, row: Tensor) -> Batch:
        return data.encode(columns, row, self.schema)

    # --- learning ---------------------------------------------------------------------------

    def networks(self) -> Networks:
        count = len(PROPERTIES)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = self.precision == "bf16" or (self.precision == "auto" and bf16_pays(device))
        made: dict[str, nn.Module] = {
            "generator": Generator(count, self.width, bf16=bf16),
            "memory": Memory(self.references, self.length),
        }
        if self.adversarial_steps:
            made["critic"] = Critic(count, self.critic_width, self.dropout, bf16=bf16)
            if self.beside:
                made["likelihood"] = Generator(count, self.width, bf16=bf16)
        if told := len(data.activities(self.schema)):
            made["recogniser"] = Recogniser(
                told, self.recogniser_width, self.voices, self.recogniser_dropout
            )
        return nn.ModuleDict(made)

    def moments(self) -> dict[str, tuple[str, Literal["min", "max"]]]:
        found = super().moments()
        if data.activities(self.schema):
            found["recogniser"] = "error", "min"
        return found

    def continues(self, schema: Schema) -> bool:
        """Whatever the activities are: molecules are said in one alphabet."""
        return self.schema[CODES] == schema[CODES]

    def inherit(self, networks: Networks, member: Networks) -> None:
        """Weights, and which molecules were in training before; what is likely is as here. The
        recogniser, whose activities may be others, is taught anew."""
        memory, before = networks["memory"], member["memory"]
        assert isinstance(memory, Memory) and isinstance(before, Memory)
        here = {
            name: (net.prior.clone(), net.longest.clone()) for name, net in _generators(networks)
        }
        kept = {name: network for name, network in member.items() if name != "recogniser"}
        super().inherit(networks, Networks(kept))
        for name, network in _generators(networks):
            prior, longest = here[name]
            network.prior.copy_(prior)
            network.longest.clamp_(min=longest)
            network.seen.fill_(True)  # what is new here may be said, once it is learned
        memory.known |= before.known.to(memory.known.device)

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:
        """Scales of properties, likely combinations of them, which codes there are, and which
        molecules."""
        taken: list[Tensor] = []
        labelled: list[Batch] = []
        seen, longest = torch.zeros_like(_generator(networks).seen), 0
        memory = networks["memory"]
        assert isinstance(memory, Memory)
        known, kept = Bloom(memory.known.numpy(force=True)), 0
        for batch in rows:
            codes = batch.value[CODES]
            seen[codes.unique()] = True
            seen[batch.value[ROOTED].unique()] = True
            longest = max(
                longest, *(int((batch.value[f] > 0).sum(1).max()) for f in (CODES, ROOTED))
            )
            known.add(data.smiles_of(codes))
            if kept < self.references:  # rows come in random order
                part = codes[: self.references - kept]
                memory.codes[kept : kept + len(part)] = part.to(memory.codes)
                for place, text in enumerate(data.smiles_of(part), kept):
                    bits = chemistry.fingerprint(chemistry.read(text))
                    memory.fingerprints[place] = torch.from_numpy(bits)
                kept += len(part)
            if sum(len(part) for part in taken) < LOOKED_AT:
                number, told = _properties(batch)
                taken.append(number[told.all(1)])
                if "recogniser" in networks:
                    labelled.append(batch)
        memory.known.copy_(torch.from_numpy(known.bits))
        number = torch.cat(taken)
        if len(number) < 2:
            raise UserError(
                "too few training molecules have their properties: ingest with a larger computed"
            )
        mean, scale = number.mean(0), number.std(0).clamp(min=1e-3)
        prior = number[torch.arange(PRIOR) % len(number)]
        for _, generator in _generators(networks):
            generator.mean.copy_(mean)
            generator.scale.copy_(scale)
            generator.prior.copy_(prior)
            generator.seen.copy_(seen)
            generator.longest.fill_(longest)
        if labelled:
            self._scales(_recogniser(networks), labelled)

    def _scales(self, recogniser: Recogniser, batches: list[Batch]) -> None:
        """What the recogniser takes for usual, and environments too rare to learn of."""
        descriptors = torch.cat([batch.value[DESCRIPTORS] for batch in batches])
        recogniser.mean.copy_(descriptors.mean(0))
        recogniser.scale.copy_(descriptors.std(0).clamp(min=1e-3))
        times = torch.stack([(batch.value[ENVIRONMENTS] > 0).sum(0) for batch in batches]).sum(0)
        recogniser.heard.copy_(times >= RARE)
        for place, field in enumerate(data.activities(self.schema)):
            known = torch.cat(
                [batch.value[field.name][batch.known[field.name]] for batch in batches]
            )
            if field.kind == "number" and len(known) > 1:
                recogniser.target_mean[place] = known.mean()
                recogniser.target_scale[place] = known.std().clamp(min=1e-6)

    def stages(self) -> tuple[Stage, ...]:
        learner = Optimizer(
            self.generator_rate, (0.9, 0.98), weight_decay=0.01, final=0.0, warm_up=WARM_UP
        )
        speaks = Player("generator", self._likelihood_loss, learner)
        found = []
        if data.activities(self.schema) and self.recogniser_steps:
            rate = Optimizer(self.recogniser_rate, (0.9, 0.99), weight_decay=0.01, final=0.0)
            tells = Player("recogniser", self._recogniser_loss, rate)
            found.append(Stage("recognition", self.recogniser_steps, (tells,), refresh=0))
        if self.steps:
            found.append(Stage("likelihood", self.steps, (speaks,), refresh=0))
        if not (found or self.adversarial_steps):
            raise UserError("steps, adversarial_steps and recogniser_steps cannot all be 0")
        if not self.adversarial_steps:
            return tuple(found)
        later = learner._replace(learning_rate=self.adversarial_rate)
        players = [
            Player(
                "critic",
                self._critic_loss,
                Optimizer(self.critic_rate, (0.5, 0.99), weight_decay=0.01),
            ),
            Player("generator", self._adversarial_loss, later),
        ]
        if self.beside:
            players.append(Player("likelihood", self._beside_loss, later, starts_as="generator"))
        last = Stage("adversarial", self.adversarial_steps, tuple(players), chooses=False)
        return (*found, last)

    def space(self) -> dict[str, tuple[Any, ...]]:
        return {
            "generator_rate": ("log", 5e-4, 5e-3),
            "adversarial_rate": ("log", 5e-5, 1e-3),
            "push": ("linear", 0.0, 1.0),
        }

    def _wish(self, batch: Batch) -> Wish:
        """What is told of real molecules in training: all properties, some, or none."""
        wish = _properties(batch)
        random = noise.uniform(batch.row, "told", (2 + len(PROPERTIES),))
        some = random[:, 2:] < random[:, 1:2]  # from none to nearly all
        partly = (random[:, 0] < 0.3)[:, None]
        told = wish.told & (some | ~partly) & (random[:, 0] >= self.hidden)[:, None]
        return wish._replace(told=told)

    def _said(self, generator: Generator, real: Batch) -> Tensor:
        """(B,) log-likelihood of real molecules, some of which begin at another atom."""
        wish = self._wish(real)
        other = noise.uniform(real.row, "rooted", (1,))[:, 0] < self.rooted
        other &= real.known[ROOTED]
        codes = torch.where(other[:, None], real.value[ROOTED], real.value[CODES])
        return generator.log_likelihood(codes, generator.hear(*wish, other))

    def _recogniser_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """Cross-entropy of what is yes or no, squares of standardised numbers; of what is known.
        Each voice leaves out rows of its own, so that they differ where little is known."""
        recogniser = _recogniser(networks)
        told = recogniser(real.value[ENVIRONMENTS], real.value[DESCRIPTORS])
        heard = noise.uniform(real.row, "voices", (self.voices,)) > LEFT_OUT
        fields = data.activities(self.schema)
        missed = torch.zeros_like(told[:, :, 0])
        for place, field in enumerate(fields):
            target = real.value[field.name][:, None].expand_as(missed)
            if field.kind == "yes_no":
                wrong = F.binary_cross_entropy_with_logits(
                    told[:, :, place], target, reduction="none"
                )
            else:
                standard = (target - recogniser.target_mean[place]) / recogniser.target_scale[place]
                wrong = (told[:, :, place] - standard).square()
            missed = missed + wrong * real.known[field.name][:, None]
        return step.mean((missed * heard).sum(1) / len(fields), real.weight)

    def _likelihood_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        return -step.mean(self._said(_generator(networks), real), real.weight)

    def _beside_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        return -step.mean(self._said(_generator(networks, "likelihood"), real), real.weight)

    def _critic_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """Real against generated; of what is no molecule there is nothing to be learned."""
        assert fake is not None
        critic = _critic(networks)
        seen = critic.read(real.value[CODES])
        logits = critic.judge(seen, *self._standard(networks, self._wish(real)))
        made = self._judged(networks, fake)
        valid = fake.known[CODES]
        critic.follow(made[valid])
        step.log("valid", step.mean(valid.float(), real.weight))
        gap = step.mean(logits - made * valid, real.weight)
        step.log("gap", gap.detach())
        number, told = self._standard(networks, _properties(real))
        missed = ((critic.properties(seen) - number).square() * told).mean(1)
        real_part = step.mean(F.softplus(-logits), real.weight)
        fake_part = step.mean(F.softplus(made) * valid, real.weight)
        return real_part + fake_part + step.mean(missed, real.weight)

    def _standard(self, networks: Networks, wish: Wish) -> Wish:
        generator = _generator(networks)
        standard = ((wish.number - generator.mean) / generator.scale).clamp(-5, 5)
        return Wish(torch.where(wish.told, standard, 0.0), wish.told)

    def _judged(self, networks: Networks, fake: Draw) -> Tensor:
        """(B,) the critic's logits of generated molecules."""
        critic, wish = _critic(networks), self._standard(networks, _wish_of(fake))
        return critic.judge(critic.read(fake.value[CODES]), *wish)

    def _adversarial_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """Likelihood of real molecules, and of its own by how much likelier they are real.

        With D/(1 − D), the ratio of real to generated density that the critic's odds estimate, the
        gradient of Σ (ratio − 1) log p over own samples is that of real molecules' likelihood (Che
        et al. 2017, "Maximum-likelihood augmented discrete GANs"). Odds are tempered by a square
        root and clipped; what is no molecule has none, and a penalty: real ones all are, so what
        the likelihood is highest for stays the same, and is come to sooner.
        """
        assert fake is not None
        generator = _generator(networks)
        likely = step.mean(self._said(generator, real), real.weight)
        with torch.no_grad():
            odds = torch.exp(0.5 * self._judged(networks, fake))
            odds = odds.clamp(1 / ODDS, ODDS) * fake.known[CODES]
            odds = odds / step.mean(odds, real.weight).clamp(min=1e-6)
            worth = self.push * (odds - 1) - self.penalty * ~fake.known[CODES]
        heard = generator.hear(*_wish_of(fake), torch.zeros_like(real.weight))
        own = generator.log_likelihood(fake.value[CODES], heard)
        return -likely - step.mean(worth * own, real.weight)

    @torch.no_grad()
    def draw(self, networks: Networks, condition: Batch) -> Draw:
        """One molecule a row for the row's properties, as far as they are told; `known` says
        whether it is one. Molecules are made canonical, since real ones are."""
        generator = _generator(networks)
        wish = self._wish(condition) if networks.training else _properties(condition)
        nowhere = torch.zeros_like(condition.weight)
        heard = generator.hear(*wish, nowhere)
        random = noise.uniform(condition.row, "codes", (self.length,))
        codes, valid = data.canonical(generator.say(heard, random))
        value = {CODES: codes, WISH: wish.number, TOLD: wish.told}
        return Draw(value, nowhere, {CODES: valid})

    # --- answers ----------------------------------------------------------------------------

    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """`nats` (B,): minus the log-likelihood of each molecule, of which no property is told;
        `features` (B, 1024): Morgan fingerprints, in which molecules are compared."""
        generator = _generator(networks)
        number, told = _properties(batch)
        heard = generator.hear(number, torch.zeros_like(told), torch.zeros_like(number[:, 0]))
        found = {"nats": -generator.log_likelihood(batch.value[CODES], heard)}
        found["features"] = data.fingerprints(batch.value[CODES])
        if "recogniser" in networks:
            found |= self._activities(networks, batch)
            found |= self._reached(networks, found["features"])
        return found

    def _activities(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """`activity` and `doubt` (B, T): the voices' mean of each activity, a probability where it
        is yes or no, and the spread between them."""
        recogniser = _recogniser(networks)
        told = recogniser(batch.value[ENVIRONMENTS], batch.value[DESCRIPTORS])
        kinds = [field.kind == "yes_no" for field in data.activities(self.schema)]
        yes_no = torch.tensor(kinds, device=told.device)
        told = torch.where(
            yes_no, torch.sigmoid(told), told * recogniser.target_scale + recogniser.target_mean
        )
        doubt = told.std(1) if self.voices > 1 else torch.zeros_like(told[:, 0])
        mean = told.mean(1)
        cooled = torch.sigmoid(torch.logit(mean, 1e-6) / recogniser.temperature)
        return {
            "activity": torch.where(yes_no, cooled, mean),
            "doubt": doubt,
            "margin": recogniser.margin.expand_as(mean),
        }

    def _reached(self, networks: Networks, bits: Tensor) -> dict[str, Tensor]:
        """`similarity` (B,) of fingerprints (B, BITS) to the nearest training molecule that is
        kept, and `reach` (B,), which most held-back molecules come up to."""
        memory = networks["memory"]
        assert isinstance(memory, Memory)
        known = memory.fingerprints.numpy(force=True)
        rows = np.packbits(bits.numpy(force=True) > 0, axis=1)
        nearest = [float(chemistry.similarity(row, known).max(initial=0.0)) for row in rows]
        reach = _recogniser(networks).reach.expand(len(rows))
        return {"similarity": torch.tensor(nearest), "reach": reach}

    def settle(self, networks: Networks, held_back: Iterable[Batch]) -> dict[str, Any] | None:
        """Temperatures of what is yes or no (Guo et al. 2017), how far numbers are missed in nine
        cases of ten (Lei et al. 2018, "Distribution-free predictive inference"), and how like the
        nearest training molecule nineteen of twenty are."""
        fields = data.activities(self.schema)
        if not fields:
            return None
        recogniser = _recogniser(networks)
        recogniser.temperature.fill_(1.0)
        said, alike, batches = [], [], [*held_back]
        for batch in batches:
            found = self.recognise(networks, batch)
            said.append(found["activity"])
            alike.append(found["similarity"])
        told = torch.cat(said).numpy()
        fitted: dict[str, Any] = {}
        for place, field in enumerate(fields):
            known = torch.cat([batch.known[field.name] for batch in batches]).numpy()
            true = torch.cat([batch.value[field.name] for batch in batches]).numpy()[known]
            one = told[known, place].astype(float)
            if field.kind == "yes_no":
                both, heat = np.stack([1 - one, one], 1), 1.0
                if len(np.unique(true)) == 2:
                    heat = calibration.cautious_temperature(both, true.astype(int))
                recogniser.temperature[place] = heat
                fitted[f"temperature of {field.name}"] = round(heat, 3)
            else:
                margin = metrics.missed_by(np.abs(one - true), MISSED)
                recogniser.margin[place] = margin
                fitted[f"nine of ten held-back molecules' {field.name} is missed by"] = (
                    f"at most {margin:.3g}" if margin else "an unknown amount: they are too few"
                )
        recogniser.reach.fill_(float(np.quantile(torch.cat(alike).numpy(), STRANGE)))
        fitted["similarity to a training molecule that answers ask for"] = round(
            float(recogniser.reach), 3
        )
        return fitted

    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        """The activity of number `target` (B,); of a model without any, the log-likelihood."""
        if "recogniser" not in networks:
            return -self.recognise(networks, batch)["nats"]
        return self._activities(networks, batch)["activity"].gather(1, target[:, None])[:, 0]

    def explain(self, model: Model, record: Record) -> dict[str, Any] | None:
        """What each atom adds to an activity (the one that the item names as `of`, else the first):
        how much less is told where the atom is made unknown."""
        names = [field.name for field in data.activities(self.schema)]
        gate = model.info.get("explanation")
        if not names:
            return {"withheld": "this model was not trained on activities"}
        if gate is not None and not gate["passes"]:
            return {"withheld": "this model's attributions do not hang on what it learned"}
        of = record["of"] or names[0]
        molecule = record["molecule"]
        shares = self._attributed(model, molecule)[:, names.index(of)]
        most = max(float(np.abs(shares).max()), 1e-9)
        marked = {atom: float(share) / most for atom, share in enumerate(shares)}
        return {
            "method": "occlusion of atoms",
            "of": of,
            "atoms": [round(float(share), 5) for share in shares],
            "svg": chemistry.svg(molecule, marked=marked),
        }

    def _attributed(self, model: Model, molecule: Chem.Mol) -> np.ndarray:
        """(atoms, activities): what is told less where an atom is unknown."""
        every = [molecule, *chemistry.occluded(molecule)]
        told = self._answers(model, every)
        value = np.array([[one["value"] for one in each.values()] for each in told])
        return value[0] - value[1:]

    def accounted(self, model: Model, batch: Batch) -> dict[str, Any] | None:
        """Whether attributions vanish with the recogniser's weights (Adebayo et al. 2018, "Sanity
        checks for saliency maps"): their rank correlation with a random recogniser's."""
        if not data.activities(self.schema):
            return None
        torch.manual_seed(0)
        strange = Networks({**model.members[0], "recogniser": self.networks()["recogniser"]})
        scales = _recogniser(strange)
        for name, buffer in _recogniser(model.members[0]).named_buffers():
            getattr(scales, name).copy_(buffer)
        other = Model(self, [strange], {})
        found = []
        for text in data.smiles_of(batch.value[CODES][:EXPLAINED]):
            molecule = chemistry.read(text)
            pair = [self._attributed(one, molecule)[:, 0] for one in (model, other)]
            if molecule.GetNumAtoms() > 2 and all(np.ptp(shares) > 0 for shares in pair):
                found.append(float(spearmanr(*pair).statistic))
        correlation = float(np.mean(found)) if found else 1.0
        return {
            "method": "occlusion of atoms",
            "passes": abs(correlation) < ALIKE,
            "correlation": [round(correlation, 3)],
        }

    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        """What is computed of a molecule, and how likely the generator finds it."""
        molecule = record["molecule"]
        found = chemistry.properties(molecule)
        drawn = {"svg": chemistry.svg(molecule)} if record.get("svg") else {}
        return drawn | {
            "smiles": chemistry.smiles(molecule),
            "inchi_key": chemistry.inchi_key(molecule),
            "properties": {name: round(value, 4) for name, value in found.items()},
            "alerts": chemistry.alerts(molecule),
            "nats": round(float(prediction["nats"]), 4),
            **self._told(prediction),
        }

    def _told(self, prediction: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One molecule's activities as JSON."""
        if "activity" not in prediction:
            return {}
        names = [field.name for field in data.activities(self.schema)]
        told: dict[str, dict[str, float]] = {}
        for place, name in enumerate(names):
            value, spread, margin = (
                float(prediction[key][place]) for key in ("activity", "doubt", "margin")
            )
            told[name] = {"value": round(value, 4), "spread": round(spread, 4)}
            if margin:
                told[name] |= {"low": round(value - margin, 4), "high": round(value + margin, 4)}
        if "similarity" not in prediction:
            return {"activities": told}
        inside = bool(prediction["similarity"] >= prediction["reach"])
        found: dict[str, Any] = {
            "activities": told,
            "similarity": round(float(prediction["similarity"]), 4),
            "in_domain": inside,
        }
        if not inside:
            found["warnings"] = [
                "it is less like the training molecules than nearly all held-back ones; what is "
                "told of its activities may be far off"
            ]
        return found

    @torch.inference_mode()
    def _answers(self, model: Model, molecules: Sequence[Chem.Mol]) -> list[dict[str, Any]]:
        """Activities of generated molecules, by all members."""
        columns = stack([data.seen(molecule) for molecule in molecules])
        batch = self.encode(columns, torch.zeros(len(molecules), dtype=torch.int64))
        every = [self._activities(member, batch) for member in model.members]
        names = every[0].keys()
        mean = {name: torch.stack([one[name] for one in every]).mean(0).numpy() for name in names}
        return [
            self._told({name: rows[place] for name, rows in mean.items()})["activities"]
            for place in range(len(molecules))
        ]

    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """Molecules as `wishes` describes a request for them, each with its evidence."""
        names = [field.name for field in data.activities(self.schema)]
        wanted = wishes.wanted(request, names)
        answers = partial(self._answers, model) if names else None
        yield from design.generate(model.members[0], self.length, wanted, answers)

    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        found = {"nats": float(prediction["nats"].mean())}
        if "activity" in prediction:
            fields = data.activities(self.schema)
            found |= metrics.activities(prediction, value, known, fields)
        return found

    def compared(self, real: Batch, other: Batch) -> dict[str, float]:
        return metrics.compared(
            data.smiles_of(real.value[CODES]), data.smiles_of(other.value[CODES])
        )

    def sample(self, model: Model) -> bytes:
        return pictures.drawn(pictures.made(model, pictures.SHOWN, critic=False))

    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        return pictures.told(model, batch)


def _properties(batch: Batch) -> Wish:
    return Wish(
        torch.stack([batch.value[name] for name in PROPERTIES], 1),
        torch.stack([batch.known[name] for name in PROPERTIES], 1),
    )


def _wish_of(fake: Draw) -> Wish:
    return Wish(fake.value[WISH], fake.value[TOLD])


def _generator(networks: Networks, name: str = "generator") -> Generator:
    found = networks[name]
    assert isinstance(found, Generator)
    return found


def _generators(networks: Networks) -> list[tuple[str, Generator]]:
    names = [name for name in ("generator", "likelihood") if name in networks]
    return [(name, _generator(networks, name)) for name in names]


def _recogniser(networks: Networks) -> Recogniser:
    found = networks["recogniser"]
    assert isinstance(found, Recogniser)
    return found


def _critic(networks: Networks) -> Critic:
    found = networks["critic"]
    assert isinstance(found, Critic)
    return found
