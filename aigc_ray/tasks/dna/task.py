"""DNA: sequences of a class are generated, and a sequence's class is recognised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
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
from aigc_ray.tasks.dna import data, design, metrics, pictures, sources
from aigc_ray.tasks.dna.chains import Chains, flipped
from aigc_ray.tasks.dna.data import LABEL, SEQUENCE
from aigc_ray.tasks.dna.networks import Chosen, Critic, Recogniser, image

LOOKED_AT = 100_000  # training sequences that the chains are fitted to, at most
EXPLAINED = 8  # sequences that attributions are tried on
AT_ONCE = 512  # changed sequences that are recognised together


@dataclass(frozen=True, kw_only=True)
class Dna(Task):
    """A DNA sequence of one length, one base a position, with a class."""

    name: ClassVar[str] = "dna"
    objective: ClassVar[tuple[str, Literal["min", "max"]]] = ("auc", "max")
    chosen: ClassVar[tuple[str, ...]] = ("recogniser",)
    tabular: ClassVar[bool] = True
    unique: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    chunk: ClassVar[int] = 1000
    identity: ClassVar[str | None] = "sequence"
    without: ClassVar[str | None] = "chains"
    draws: ClassVar[int] = 200

    length: int | None = None  # letters; None: as the data are
    label: str | None = None  # the column of classes; None: one called label, class, target or y
    loss: Literal["relativistic", "classic"] = "classic"
    steps: int = 3000
    width: int = 48  # of the critic
    candidates: int = 8  # draws of the chains of which the critic lets one pass
    recogniser_width: int = 64
    recogniser_dropout: float = 0.3
    class_weight: float = 0.5  # of the critic's class head
    critic_rate: float = 3e-3
    recogniser_rate: float = 2e-3
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if self.length is not None and not data.SHORTEST <= self.length <= data.LONGEST:
            raise UserError(
                f"task.length is from {data.SHORTEST} to {data.LONGEST}; got {self.length}"
            )
        for key in ("steps", "width", "candidates", "recogniser_width"):
            if getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 1; got {getattr(self, key)}")
        if not 0 <= self.recogniser_dropout < 1:
            raise UserError(
                f"task.recogniser_dropout is at least 0 and below 1; got {self.recogniser_dropout}"
            )

    # --- data -------------------------------------------------------------------------------

    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        found = sources.survey(uri, self.length, self.label)
        if not data.SHORTEST <= found.length <= data.LONGEST:
            raise UserError(
                f"{uri} has sequences of {found.length} letters; {data.SHORTEST} to {data.LONGEST} "
                "are learned from (length=N takes the middle of longer ones)"
            )
        return replace(self, schema=data.schema(found.length, found.classes)), found.pieces

    def read(self, source: Source) -> Iterator[Record | Reject]:
        return data.read(source, self.schema, cut=self.length is not None)

    def parse(self, item: Mapping[str, Any]) -> Record:
        return data.parse(item, self.schema)

    def encode(self, columns: Columns, row: Tensor) -> Batch:
        return data.encode(columns, row, self.schema)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema[LABEL].values

    # --- learning ---------------------------------------------------------------------------

    def networks(self) -> Networks:
        length, classes = self.schema[SEQUENCE].shape[0], len(self.classes)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = self.precision == "bf16" or (self.precision == "auto" and bf16_pays(device))
        made: dict[str, nn.Module] = {
            "generator": Chosen(),
            "critic": Critic(length, classes, self.width, bf16=bf16),
            "recogniser": Recogniser(
                length, classes, self.recogniser_width, self.recogniser_dropout
            ),
            "chains": Chains(length, classes),
        }
        return nn.ModuleDict(made)

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:
        codes, label = [], []
        for batch in rows:
            known = batch.known[LABEL]
            codes.append(batch.value[SEQUENCE][known])
            label.append(batch.value[LABEL][known])
            if sum(map(len, codes)) >= LOOKED_AT:
                break
        _chains(networks).fit(torch.cat(codes), torch.cat(label))

    def stages(self) -> tuple[Stage, ...]:
        judge = Optimizer(self.critic_rate, (0.9, 0.99), weight_decay=0.01, final=0.1, warm_up=0.05)
        learner = Optimizer(
            self.recogniser_rate, (0.9, 0.999), weight_decay=0.01, final=0.0, warm_up=0.05
        )
        players = (
            Player("critic", self._critic_loss, judge),
            Player("recogniser", self._recogniser_loss, learner),
        )
        return (Stage("adversarial", self.steps, players),)

    def space(self) -> dict[str, tuple[Any, ...]]:
        return {
            "recogniser_rate": ("log", 5e-4, 5e-3),
            "recogniser_dropout": ("linear", 0.0, 0.5),
            "critic_rate": ("log", 1e-3, 1e-2),
        }

    def draw(self, networks: Networks, condition: Batch) -> Draw:
        """Sequences for the rows' classes, with the codes under "fixed" where these are not 0.

        While the critic learns it is shown sequences as the chains say them. From then on it lets
        one of several candidates pass. They are of the same part of the mixture, so that the
        critic's taste does not change how many sequences are rich in G and C.
        """
        label, fixed = condition.value[LABEL], condition.value.get("fixed")
        count = 1 if networks.training else self.candidates
        length, size = self.schema[SEQUENCE].shape[0], len(label)
        random = noise.uniform(condition.row, "chains", (count, length + 1))
        random[:, :, 0] = random[:, :1, 0]
        every = label.repeat_interleave(count)
        if fixed is not None:
            fixed = fixed.repeat_interleave(count, 0)
        codes = _chains(networks).say(every, random.flatten(0, 1), fixed)
        if count > 1:
            critic = networks["critic"]
            assert isinstance(critic, Critic)
            logits = critic.both(codes, every)[0].view(size, count)
            chosen = networks["generator"](logits, noise.uniform(condition.row, "choice", (count,)))
            codes = codes.view(size, count, length)[torch.arange(size, device=codes.device), chosen]
        return Draw({"image": image(codes), SEQUENCE: codes, LABEL: label}, None)

    def _critic_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        critic, label = networks["critic"], real.value[LABEL]

        def judge(seen: Tensor, side: int) -> tuple[Tensor, Tensor]:
            told: tuple[Tensor, Tensor] = critic(_either_strand(seen, real.row + side), label)
            return told

        images = image(real.value[SEQUENCE]), fake.value["image"]
        loss, classes = losses.critic(
            judge, *images, real.weight, step.mean, loss=self.loss, gamma=0.0
        )
        told = losses.recognition(classes, label)
        return loss + self.class_weight * step.mean(told, real.weight * real.known[LABEL])

    def _recogniser_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """Of one strand, drawn for each row; how far the chains' odds are trusted beside it is
        learned by itself, from odds that leave out the row they were counted with."""
        recogniser, label = networks["recogniser"], real.value[LABEL]
        assert isinstance(recogniser, Recogniser)
        codes = real.value[SEQUENCE]
        other = noise.uniform(real.row, "strand", (1,)) < 0.5
        features = recogniser.features(image(torch.where(other, flipped(codes), codes)))
        odds = _chains(networks).log_likelihood(codes, label)
        weight = real.weight * real.known[LABEL]
        seen = losses.recognition(recogniser.seen(features), label)
        trusted = losses.recognition(recogniser.trusted(odds), label)
        return step.mean(seen + trusted, weight)

    # --- answers ----------------------------------------------------------------------------

    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """`probability` (B, K) by both strands; `features` (B, D) in which sequences are compared,
        `look` (B, P) their letters and pairs of letters."""
        recogniser = networks["recogniser"]
        assert isinstance(recogniser, Recogniser)
        codes = batch.value[SEQUENCE]
        odds = _chains(networks).log_likelihood(codes)
        features = recogniser.both(codes)
        found = {
            "probability": recogniser.logits(features, odds).softmax(1),
            "features": features,
            "look": _pairs(codes),
        }
        if "critic" in networks:
            critic = networks["critic"]
            assert isinstance(critic, Critic)
            found["critic"] = critic.both(codes, batch.value[LABEL])[1].softmax(1)
        return found

    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        """(B,) the recogniser's logit; not differentiable in what is a choice of letters."""
        recogniser = networks["recogniser"]
        assert isinstance(recogniser, Recogniser)
        codes = batch.value[SEQUENCE]
        odds = _chains(networks).log_likelihood(codes)
        logits = recogniser.logits(recogniser.both(codes), odds)
        return logits.gather(1, target[:, None])[:, 0]

    def explain(self, model: Model, record: Record) -> dict[str, Any] | None:
        """By how much each letter raises the answer's score, against the three others in its place
        (in-silico mutagenesis), as numbers and as a logo."""
        gate = model.info.get("explanation")
        if gate is not None and not gate["passes"]:
            return {"withheld": "this model's attributions do not hang on what it learned"}
        codes = torch.from_numpy(record[SEQUENCE]).long()[None]
        target = int(design.recognised(model, codes)[0].argmax())
        effect = torch.stack([self._effects(one, codes[0], target) for one in model.members])
        mean = effect.mean(0).numpy()
        heights = np.zeros((len(mean), 4))
        letters = codes[0].numpy()
        known = letters > 0
        heights[np.flatnonzero(known), letters[known] - 1] = mean[known]
        name = self.classes[target]
        return {
            "method": "in-silico mutagenesis",
            "of": name,
            "bases": [round(float(value), 4) for value in mean],
            "image": pictures.logo(heights, f"score of {name}"),
        }

    @torch.inference_mode()
    def _effects(self, networks: Networks, codes: Tensor, target: int) -> Tensor:
        """(L,) the score of a sequence (L,) less its mean with another letter at each position."""
        length = len(codes)
        changed = codes.repeat(length, 3, 1)  # (L, 3, L)
        place = torch.arange(length)
        for step in range(3):
            changed[place, step, place] = (codes + step) % 4 + 1
        every = torch.cat([codes[None], changed.flatten(0, 1)])
        scores = []
        for part in every.split(AT_ONCE):
            empty = torch.zeros(len(part), dtype=torch.int64)
            batch = Batch({SEQUENCE: part, LABEL: empty}, {}, torch.ones(len(part)), empty)
            scores.append(self.score(networks, batch, torch.full_like(empty, target)))
        found = torch.cat(scores)
        effect = found[0] - found[1:].view(length, 3).mean(1)
        return torch.where(codes > 0, effect, torch.zeros_like(effect))

    def accounted(self, model: Model, batch: Batch) -> dict[str, Any] | None:
        """Attributions beside those of networks that learned nothing (Adebayo et al. 2018)."""
        from aigc_ray import explanation

        with torch.random.fork_rng():
            torch.manual_seed(0)
            fresh = self.networks().eval()
        pairs = (
            [self._effects(one, codes, 0).numpy() for one in (model.members[0], fresh)]
            for codes in batch.value[SEQUENCE][:EXPLAINED]
        )
        return explanation.beside_untrained("in-silico mutagenesis", pairs)

    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        probability = prediction["probability"]
        named = {
            name: round(float(p), 6) for name, p in zip(self.classes, probability, strict=True)
        }
        found = {"label": self.classes[int(probability.argmax())], "probabilities": named}
        return {"name": record["name"], **found} if record.get("name") else found

    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """Sequences with what speaks for them. A request holds `n`, `seed`, `class`, `motifs` that
        must stand somewhere or at a position, `fixed` letters between which is filled in, a range
        of `gc`, `forbidden` sites on both strands, and how `sure` of the class the recogniser must
        be."""
        return design.generate(model, request)

    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        rows = known[LABEL]
        return recognition.figures(prediction["probability"][rows], value[LABEL][rows])

    def compared(self, real: Batch, other: Batch) -> dict[str, float]:
        """Divergences of words of 3 to 6 letters, means over classes; how far apart the shares of G
        and C are, and their spreads; divergences of motifs' places and distances."""
        found: dict[str, list[float]] = {}
        for label in range(len(self.classes)):
            a, b = (
                batch.value[SEQUENCE][batch.value[LABEL] == label].numpy(force=True)
                for batch in (other, real)
            )
            if not len(a) or not len(b):
                continue
            for order, value in metrics.word_divergences(a, b).items():
                found.setdefault(f"words_{order}_js", []).append(value)
            rich, real_rich = metrics.composition(a), metrics.composition(b)
            found.setdefault("gc_mean_gap", []).append(abs(float(rich.mean() - real_rich.mean())))
            found.setdefault("gc_sd_gap", []).append(abs(float(rich.std() - real_rich.std())))
            place, gap = metrics.motif_divergences(a, b)
            found.setdefault("motif_places_js", []).append(place)
            found.setdefault("motif_gaps_js", []).append(gap)
        return {
            name: float(np.mean([x for x in every if x == x]))
            if any(x == x for x in every)
            else 0.0
            for name, every in found.items()
        }

    def sample(self, model: Model) -> bytes:
        codes = self._samples(model, 250 * len(self.classes))
        return self._logo(codes, "generated")

    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        real = batch.value[SEQUENCE].numpy(force=True)
        label = batch.value[LABEL].numpy(force=True)
        by_class = [real[label == number] for number in range(len(self.classes))]
        yield "Letters of real sequences by position", self._logo(by_class, "real")
        made = self._samples(model, 250 * len(self.classes))
        yield "Letters of generated sequences by position", self._logo(made, "generated")
        yield "Words in real and generated sequences", pictures.words(real, np.concatenate(made))

    def _samples(self, model: Model, n: int) -> list[np.ndarray]:
        """Codes of each class."""
        label = torch.arange(n) % len(self.classes)
        codes = design.drawn(model, label, noise.keys(0, torch.arange(n)), None).numpy()
        return [codes[label == number] for number in range(len(self.classes))]

    def _logo(self, by_class: list[np.ndarray], what: str) -> bytes:
        """The class that has most to show: that with the most information by position."""
        shown = [
            (name, codes) for name, codes in zip(self.classes, by_class, strict=True) if len(codes)
        ]
        heights = [(pictures.information(codes), name) for name, codes in shown]
        best, name = max(heights, key=lambda pair: float(pair[0].sum()))
        return pictures.logo(best, "bits", f"{what}, class {name}")


def _chains(networks: Networks) -> Chains:
    found = networks["chains"]
    assert isinstance(found, Chains)
    return found


def _either_strand(image: Tensor, row: Tensor) -> Tensor:
    """Each row's image (B, 4, 1, L), or that of its other strand."""
    other = noise.uniform(row, "strand", (1,))[:, :, None, None] < 0.5
    return torch.where(other, image.flip(1, 3), image)


def _pairs(codes: Tensor) -> Tensor:
    """(B, 16) shares of pairs of neighbouring letters."""
    pair = (codes[:, :-1] - 1).clamp(min=0) * 4 + (codes[:, 1:] - 1).clamp(min=0)
    known = (codes[:, :-1] > 0) & (codes[:, 1:] > 0)
    hot = torch.nn.functional.one_hot(pair, 16).float() * known[..., None]
    return hot.sum(1) / known.sum(1, keepdim=True).clamp(min=1)
