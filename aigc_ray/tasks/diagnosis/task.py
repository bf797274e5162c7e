"""Diagnosis: images of a class are generated, and an image's class is recognised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import losses, noise, recognition
from aigc_ray.blocks import ResNet18, bf16_pays, low_precision
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
    whole,
)
from aigc_ray.tasks.diagnosis import data
from aigc_ray.tasks.diagnosis.augment import augment, pad_crop, retaken
from aigc_ray.tasks.diagnosis.networks import (
    NOISE,
    SIZES,
    ClassicCritic,
    ClassicGenerator,
    Critic,
    Generator,
)

LOOKED_AT = 8192  # training images whose mean and spread the generator starts from, at most
COARSE = 4  # pixels a side by which an image of another kind is told
MOST_GENERATED = 10_000  # images in one request
SURE = 0.9  # how sure of an image's class the critic must be for a recogniser to learn from it
LEARNS_FROM_GENERATED = 0.75  # share of the training after which generated images are good enough


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Task):
    """A medical image with a class, or with any number of labels."""

    name: ClassVar[str] = "diagnosis"
    objective: ClassVar[tuple[str, Literal["min", "max"]]] = ("auc", "max")
    chosen: ClassVar[tuple[str, ...]] = ("recogniser",)

    size: int | None = None  # pixels a side; None: as the data are, 128 for folders of files
    channels: int | None = None  # 1 or 3; None: as the data are
    loss: Literal["relativistic", "classic"] = "relativistic"
    network: Literal["default", "classic"] = "default"
    steps: int = 4000
    width: float = 0.5  # of generator and critic, times 128-96-64-48-32 from the coarsest stage on
    recogniser_width: int = 32  # channels of ResNet-18's first stage; 64 in the paper
    penalty: float | None = None  # gamma of R1 and R2; None: the recipe for the size
    penalty_final: float = 0.1  # share of it that is left at the end
    penalty_every: int = 4  # steps; the penalties take half of a step in which they are taken
    class_weight: float = 0.5  # of the critic's class head
    augmentation: float = 0.6  # of the critic's images, strength at most; 0 switches it off
    recogniser_augmentation: float = 0.5  # of its own images, beside small shifts
    generated_share: float = 0.3  # of a second recogniser's rows, late in training; 0: no such
    flip: bool = False  # whether left and right may be exchanged
    adversary_rate: float | None = None  # None: the recipe for the size
    recogniser_rate: float = 1e-3
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if self.network == "classic" and self.penalty:
            raise UserError(
                "task.network=classic has batch normalisation, which excludes gradient penalties; "
                "set task.penalty=0 or task.network=default"
            )
        if self.size is not None and self.size not in SIZES:
            sizes = ", ".join(map(str, SIZES))
            raise UserError(f"task.size is one of {sizes}; got {self.size}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"task.channels is 1 or 3; got {self.channels}")
        # With fewer, oneDNN 3.12 writes past the end of the gradient of a strided 1x1 convolution
        # in float32 where channels lie last (measured: glibc ends the process, with fewer than 8
        # on a CPU with AVX2 and with 8 on one with AVX-512).
        if self.recogniser_width < 16:
            raise UserError(f"task.recogniser_width is at least 16; got {self.recogniser_width}")
        for key in ("steps", "penalty_every"):
            if getattr(self, key) < 1:
                raise UserError(f"task.{key} is at least 1; got {getattr(self, key)}")
        if not 0 <= self.generated_share <= 0.5:
            raise UserError(
                f"task.generated_share lies between 0 and 0.5; got {self.generated_share}"
            )

    # --- data -------------------------------------------------------------------------------

    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        from dataclasses import replace

        schema, sources = data.survey(uri, size=self.size, channels=self.channels)
        return replace(self, schema=schema), sources

    def read(self, source: Source) -> Iterator[Record | Reject]:
        return data.read(source, self.schema)

    def parse(self, item: Mapping[str, Any]) -> Record:
        return data.parse(item, self.schema)

    def encode(self, columns: Columns, row: Tensor) -> Batch:
        return data.encode(columns, row, self.schema)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema["label"].values

    # --- learning ---------------------------------------------------------------------------

    def _bf16(self, device: str) -> bool:
        return self.precision == "bf16" or (self.precision == "auto" and bf16_pays(device))

    def networks(self) -> Networks:
        channels, size, _ = self.schema["image"].shape
        if size not in SIZES:
            raise UserError(f"images are {size} pixels wide; ingest them with size=128 or another")
        classes = len(self.classes)
        bf16 = self._bf16("cuda" if torch.cuda.is_available() else "cpu")
        generator: nn.Module
        critic: nn.Module
        if self.network == "classic":
            generator = ClassicGenerator(channels, size, classes)
            critic = ClassicCritic(channels, size, classes)
        else:
            several = self.schema["label"].kind == "labels"
            generator = Generator(
                channels, size, classes, width=self.width, bf16=bf16, several=several
            )
            critic = Critic(channels, size, classes, width=self.width, bf16=bf16)
        found: dict[str, nn.Module] = {"generator": generator, "critic": critic}
        for name in ("recogniser", "beside") if self.generated_share else ("recogniser",):
            found[name] = ResNet18(channels, classes, width=self.recogniser_width, size=size)
        return nn.ModuleDict(found)

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:
        """The generator starts as a Gaussian sampler of each class."""
        generator = networks["generator"]
        if not isinstance(generator, Generator):
            return
        images, labels, known = [], [], []
        for batch in rows:
            side = generator.components.side
            images.append(F.interpolate(batch.value["image"], side, mode="area"))
            labels.append(batch.value["label"])
            known.append(batch.known["label"])
            if sum(map(len, images)) >= LOOKED_AT:
                break
        generator.components.fit(torch.cat(images), torch.cat(labels), torch.cat(known))

    def stages(self) -> tuple[Stage, ...]:
        adversary = Optimizer(self.rate, betas=(0.0, 0.95))
        recogniser = Optimizer(self.recogniser_rate, (0.9, 0.999), weight_decay=5e-4, final=0.01)
        players = [
            Player("critic", self._critic_loss, adversary),
            Player("recogniser", self._recogniser_loss, recogniser),
            Player("generator", self._generator_loss, adversary),
        ]
        if self.generated_share:
            late, start = LEARNS_FROM_GENERATED, "recogniser"
            players.append(Player("beside", self._beside_loss, recogniser, late, start))
        watch = self._overfitting if self.augmentation > 0 else None
        return (Stage("adversarial", self.steps, tuple(players), overfitting=watch),)

    def space(self) -> dict[str, tuple[Any, ...]]:
        searched: dict[str, tuple[Any, ...]] = {
            "adversary_rate": ("log", self.rate / 5, self.rate * 2),
            "recogniser_rate": ("log", 3e-4, 3e-3),
            "augmentation": ("linear", 0.0, 0.8),
        }
        if self.network == "default":
            # The right penalty grows with the images: a range around the recipe for their size.
            searched["penalty"] = ("log", self.gamma / 5, self.gamma * 5)
            searched["width"] = ("choice", 0.25, 0.5, 0.75)
        return searched

    @property
    def gamma(self) -> float:
        """Weight of the gradient penalties; grows with the number of pixels (notes of R3GAN)."""
        if self.penalty is not None or self.network == "classic":
            return self.penalty or 0.0
        size = self.schema["image"].shape[1]
        return 0.5 if size < 56 else 1.5 if size < 112 else 10.0 if size < 192 else 50.0

    @property
    def rate(self) -> float:
        """Of generator and critic: R3GAN's 2e-4, but for small images, whose networks are shallow
        and whose trainings are short (tried at 28 pixels: a third learned less in the same steps,
        twice as much too, and three times as much came apart)."""
        if self.adversary_rate is not None:
            return self.adversary_rate
        return 3e-3 if self.schema["image"].shape[1] < 56 else 2e-4

    def perturb(self, batch: Batch) -> Batch:
        """Another exposure, another position, another device, something in the way."""
        image = augment(batch.value["image"], batch.row, 1.0, flip=False, stream="elsewhere")
        image = retaken(image.clamp(-1, 1), batch.row)
        return batch._replace(value=batch.value | {"image": image})

    def draw(self, networks: Networks, condition: Batch) -> Draw:
        z = noise.normal(condition.row, "generator", (NOISE,))
        label = condition.value["label"]
        image = networks["generator"](z, label, condition.known["label"])
        return Draw({"image": image, "label": label}, None)

    def _critic_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        critic = networks["critic"]
        label, known = real.value["label"], real.known["label"]
        gamma = self.gamma * (1 - (1 - self.penalty_final) * step.progress)
        # At some steps only, and as much more there (Karras et al. 2020, "lazy regularization").
        gamma *= self.penalty_every * (step.number % self.penalty_every == 0)
        strength = min(step.strength, self.augmentation)

        def judge(image: Tensor, side: int) -> tuple[Tensor, Tensor]:
            seen = augment(image, real.row + side, strength, flip=self.flip, stream="critic")
            told: tuple[Tensor, Tensor] = critic(seen, label, known)
            return told

        images = real.value["image"], fake.value["image"].float()
        loss, classes = losses.critic(
            judge, *images, real.weight, step.mean, loss=self.loss, gamma=gamma
        )
        recognition = losses.recognition(classes, label)  # of the real rows
        return loss + self.class_weight * step.mean(recognition, real.weight * known)

    def _generator_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        assert fake is not None
        label, known = real.value["label"], real.known["label"]
        strength = min(step.strength, self.augmentation)
        images = augment(
            fake.value["image"], real.row + 1, strength, flip=self.flip, stream="generator"
        )
        logits, _ = networks["critic"](images, label, known)
        if self.loss == "classic":
            return losses.classic_generator(logits, real.weight, step.mean)
        with torch.no_grad():
            seen = augment(
                real.value["image"], real.row, strength, flip=self.flip, stream="generator"
            )
            real_logits, _ = networks["critic"](seen, label, known)
        return losses.relativistic(logits, real_logits, real.weight, step.mean)

    def _recogniser_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        weight = real.weight * real.known["label"]
        return self._recognition(networks["recogniser"], real.value["image"], real, weight, step)

    def _beside_loss(
        self, networks: Networks, real: Batch, fake: Draw | None, step: Step
    ) -> Tensor:
        """As the recogniser's, with a generated image in the place of some rows: where the critic
        is sure that it shows the row's class. It counts half."""
        assert fake is not None
        label, known = real.value["label"], real.known["label"]
        chosen = known & (noise.uniform(real.row, "generated", ()) < self.generated_share)
        generated = fake.value["image"].float()
        with torch.no_grad():
            _, classes = networks["critic"](generated[chosen], label[chosen], known[chosen])
            unsure = losses.recognition(classes, label[chosen]) > -math.log(SURE)
        chosen[chosen.clone()] = ~unsure
        image = torch.where(chosen[:, None, None, None], generated, real.value["image"])
        weight = real.weight * known * (1 - 0.5 * chosen.float())
        return self._recognition(networks["beside"], image, real, weight, step)

    def _recognition(
        self, network: nn.Module, image: Tensor, real: Batch, weight: Tensor, step: Step
    ) -> Tensor:
        image = pad_crop(image, real.row, flip=self.flip)
        strength = self.recogniser_augmentation
        image = augment(image, real.row, strength, flip=False, stream="recognised")
        image = image.contiguous(memory_format=torch.channels_last)
        with low_precision(self._bf16(image.device.type), image.device):
            logits = network(image)
        return step.mean(losses.recognition(logits, real.value["label"]), weight)

    def _overfitting(
        self, networks: Networks, real: Batch, held_back: Batch, fake: Draw, step: Step
    ) -> Tensor:
        """(E D(train) − E D(validation)) / (E D(train) − E D(generated)): 0 when the critic treats
        rows it never trained on as it treats its own, 1 when it takes them for generated.

        The sign statistic of Karras et al. 2020 means nothing for logits that only differences
        fix; this ratio, their r_v, does."""
        critic = networks["critic"]
        label, known = real.value["label"], real.known["label"]
        train = critic(real.value["image"], label, known)[0]
        generated = critic(fake.value["image"].float(), label, known)[0]
        validation = critic(
            held_back.value["image"], held_back.value["label"], held_back.known["label"]
        )[0]
        on_train = step.mean(train, real.weight)
        gap = on_train - step.mean(generated, real.weight)
        return (on_train - step.mean(validation, held_back.weight)) / gap.clamp(min=1e-3)

    # --- answers ----------------------------------------------------------------------------

    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        image = batch.value["image"].contiguous(memory_format=torch.channels_last)
        recogniser: Any = networks["recogniser"]
        features = recogniser.features(image)
        found = {"probability": self._likely(recogniser.head(features)), "features": features}
        found["look"] = F.adaptive_avg_pool2d(image, COARSE).flatten(1)
        if "critic" in networks:
            # Its class head looks at the image alone; the label is for the other output.
            seen = networks["critic"](image, batch.value["label"], batch.known["label"])
            found["critic"] = self._likely(seen[1])
        if "beside" in networks:
            found["beside"] = self._likely(networks["beside"](image))
        return found

    def _likely(self, logits: Tensor) -> Tensor:
        several = self.schema["label"].kind == "labels"
        return torch.sigmoid(logits) if several else torch.softmax(logits, 1)

    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        logits: Tensor = networks["recogniser"](batch.value["image"])
        return logits.gather(1, target[:, None])[:, 0]

    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        probability = prediction["probability"]
        named = {
            name: round(float(p), 6) for name, p in zip(self.classes, probability, strict=True)
        }
        if self.schema["label"].kind == "labels":
            present = [name for name, p in named.items() if p >= 0.5]
            return {"labels": present, "probabilities": named}
        return {"label": self.classes[int(probability.argmax())], "probabilities": named}

    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """Images as PNG files. A request holds `n`, `seed`, and `class` (a name, or for several
        labels a list of names; without it classes take turns)."""
        unknown = set(request) - {"n", "seed", "class"}
        if unknown:
            raise UserError(f"generate takes n, seed and class; got {', '.join(sorted(unknown))}")
        n, seed = whole(request, "n", 1, 1, MOST_GENERATED), whole(request, "seed", 0, 0, 2**63)
        labels = self._labels(request.get("class"), n)
        for start in range(0, n, 64):
            chosen = labels[start : start + 64]
            numbers = torch.arange(start, start + len(chosen))
            batch = self._condition(chosen, noise.keys(seed, numbers))
            images = model.draw(batch).value["image"]
            for offset, image in enumerate(images):
                item: Item = {"seed": seed, "number": start + offset}
                item["class"] = self._names(chosen[offset])
                yield item | {"image": data.png(image)}

    def _condition(self, labels: Tensor, row: Tensor) -> Batch:
        weight = torch.ones(len(labels))
        return Batch({"label": labels}, {"label": weight > 0}, weight, row)

    def _labels(self, wanted: Any, n: int) -> Tensor:
        """The conditions of n samples, (n,) or (n, K)."""
        field = self.schema["label"]
        several = field.kind == "labels"
        names = wanted if several and isinstance(wanted, list) else [wanted]
        if wanted is None:
            return (
                torch.zeros(n, len(field.values))
                if several
                else torch.arange(n) % len(field.values)
            )
        if not all(isinstance(name, str) and name in field.values for name in names):
            form = "a list of names out of" if several else "one of"
            raise UserError(f"class is {form} {', '.join(field.values)}; got {wanted!r}")
        if not several:
            return torch.full((n,), field.index(wanted))
        flags = [float(value in names) for value in field.values]
        return torch.tensor(flags).expand(n, -1)

    def _names(self, label: Tensor) -> Any:
        if label.dim() == 0:
            return self.classes[int(label)]
        return [name for name, here in zip(self.classes, label, strict=True) if here > 0.5]

    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        rows = known["label"]
        return recognition.figures(prediction["probability"][rows], value["label"][rows])

    def sample(self, model: Model) -> bytes:
        field = self.schema["label"]
        if field.kind == "labels":
            labels = torch.eye(len(field.values)).repeat_interleave(8, 0)[:64]
        else:
            labels = torch.arange(len(field.values)).repeat_interleave(8)[:64]
        row = noise.keys(0, torch.arange(len(labels)))
        return data.grid(model.draw(self._condition(labels, row)).value["image"], 8)

    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        yield "Real images", data.grid(batch.value["image"][:32], 8)
        rows = "; ".join(self.classes[:8])
        yield f"Generated images, a row a class ({rows})", self.sample(model)
