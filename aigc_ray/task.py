"""The one contract between a kind of medical data and everything else.

A task says what its data are, which networks play, which losses each of them lowers, and how a
sample is read, encoded, drawn, recognised and answered. The loop, the workers, the registry and
the server know a task only through this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from torch import Tensor, nn

from aigc_ray.errors import UserError
from aigc_ray.losses import Mean
from aigc_ray.schema import Schema

if TYPE_CHECKING:
    from aigc_ray.model import Model

# "generator", "critic", "recogniser", and "beside", a recogniser that learned from generated rows
# too: those the task has
Networks = nn.ModuleDict
Record = dict[str, Any]  # one row: field name -> plain value or array; None where it is missing
Columns = Mapping[str, np.ndarray]  # rows side by side, as the Parquet shards hold them
Source = dict[
    str, Any
]  # a piece of work for `read`: JSON-safe, names a file and what is known of it
Item = dict[str, Any]  # one generated sample with its seed; `bytes` values are files


class Reject(NamedTuple):
    """A row that was set aside, and why."""

    source: str
    reason: str


class Shortfall(NamedTuple):
    """Samples that were asked for and not made, and why."""

    missing: int
    reason: str


class Batch(NamedTuple):
    """A set of examples, as the loop sees them."""

    value: dict[str, Tensor]  # (B, *field.shape) each
    known: dict[str, Tensor]  # bool (B,); False where the value is missing or censored
    weight: Tensor  # (B,); the row's share in every mean, 0 for padding
    row: Tensor  # (B,) int64 key that seeds the row's noise and augmentation (`noise.keys`)

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers, as often as they are named."""
        return Batch(
            {name: value[rows] for name, value in self.value.items()},
            {name: known[rows] for name, known in self.known.items()},
            self.weight[rows],
            self.row[rows],
        )

    def to(self, device: str) -> Batch:
        return Batch(
            {name: value.to(device, non_blocking=True) for name, value in self.value.items()},
            {name: known.to(device, non_blocking=True) for name, known in self.known.items()},
            self.weight.to(device, non_blocking=True),
            self.row.to(device, non_blocking=True),
        )


class Draw(NamedTuple):
    """Generated samples, with the conditions they were drawn under."""

    value: dict[str, Tensor]
    log_probability: Tensor | None  # None: learn through the gradient; else through weights
    known: Mapping[str, Tensor] = MappingProxyType({})  # bool (B,); a field not named is known


class Step(NamedTuple):
    """What a loss may ask of the loop."""

    mean: Mean
    number: int  # of the step, from 0 on; what is not done at each step hangs on it
    progress: float  # share of the stage's steps done, 0 to 1; schedules hang on it
    strength: float  # of the augmentation, 0 to 1
    log: Callable[[str, Tensor], None]  # a figure for the progress line


class Optimizer(NamedTuple):
    """AdamW's settings for one player; the rate falls on a cosine to `final` of itself."""

    learning_rate: float
    betas: tuple[float, float] = (0.0, 0.9)
    weight_decay: float = 0.0
    final: float = 0.25
    warm_up: float = 0.0  # share of the stage's steps in which the rate rises
    # Where a true gradient is zero, Adam makes steps of the rounding error in it, which differs
    # with the number of workers. An epsilon well above that error keeps them together.
    epsilon: float = 1e-7


Loss = Callable[[Networks, Batch, Draw | None, Step], Tensor]


class Player(NamedTuple):
    """One network's update in a step."""

    network: str
    loss: Loss
    optimizer: Optimizer
    joins: float = 0.0  # share of the stage's steps after which it takes its turns
    starts_as: str | None = None  # the network that it is a copy of when it joins


class Stage(NamedTuple):
    """A stretch of training with the same players, e.g. likelihood, then adversarial.

    A later stage goes on from the best moment of the networks that the objective chooses.
    """

    name: str
    steps: int
    players: tuple[Player, ...]  # in the order of their updates
    # Steps a pool of samples is used for: 1 for images, hundreds for molecules; 0 draws none.
    refresh: int = 1
    chooses: bool = True  # the best moment by the objective; else the last one of `chosen` is kept
    # (networks, training batch, held-back batch, their draw, step) -> how far the critic knows
    # its training rows by heart, 0 to 1; steers the strength of the augmentation towards .5
    overfitting: Callable[[Networks, Batch, Batch, Draw, Step], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One kind of medical data: a frozen configuration with what it learned from a data set."""

    name: ClassVar[str]
    objective: ClassVar[tuple[str, Literal["min", "max"]]]  # validation metric that chooses
    chosen: ClassVar[tuple[str, ...]]  # networks that the objective is about
    headline: ClassVar[str | None] = None  # what is told of learning from generated rows, from 0
    # to 1, higher is better; None: the objective
    tabular: ClassVar[bool] = False  # whether the rows of a table are items, one each
    unique: ClassVar[bool] = False  # whether of equal rows in a split only the first is kept
    transfers: ClassVar[bool] = True  # whether a recogniser can be taught by generated rows alone
    compares: ClassVar[bool] = False  # whether `compared` tells rows apart by more than features
    drawings: ClassVar[int] = 1  # of generated rows that are compared with real ones; small sets
    # are drawn a few times over, since one drawing's outliers count for much
    personal: ClassVar[bool] = True  # whether a copied row would give somebody away
    chunk: ClassVar[int] = 256  # samples that a job makes from one seed
    identity: ClassVar[str | None] = None  # the key of a sample by which no two may be alike
    without: ClassVar[str | None] = None  # the network that generates without an adversary's part
    draws: ClassVar[int] = 1000  # of the bootstrap, at most; `measure` runs as often

    schema: Schema = Schema()

    # --- data -------------------------------------------------------------------------------

    @abstractmethod
    def survey(self, uri: str) -> tuple[Self, list[Source]]:
        """Look at a source without reading it all: this task with its schema, and the work."""

    @abstractmethod
    def read(self, source: Source) -> Iterator[Record | Reject]:
        """The records of one piece of work; a bad one becomes a `Reject`, never an exception.

        Beside its fields a record may hold `split`, `patient`, `source` and `extra`, which are
        written, `person` (who the patient is by a file's header; a pseudonym is written), `flag`
        (what somebody should know of the row; the manifest counts them) and `same` (bytes that
        equal rows have in common, where that is not all that is generated and recognised).
        """

    @abstractmethod
    def parse(self, item: Mapping[str, Any]) -> Record:
        """One item of a request (an upload's bytes under "file", or JSON) as a record.

        Sentences under "warnings" are repeated in its answer; of records under "variants" the
        answers are added to it, each under its name. Raises `UserError` that names the
        field and what would be right.
        """

    @abstractmethod
    def encode(self, columns: Columns, row: Tensor) -> Batch:
        """Rows as tensors: the same in training and in serving. Absent columns are not known."""

    # --- learning ---------------------------------------------------------------------------

    @abstractmethod
    def networks(self) -> Networks: ...

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]: ...

    def prepare(self, networks: Networks, rows: Iterator[Batch]) -> None:  # noqa: B027
        """Give networks what plain statistics of training rows say, before the first step.

        `rows` come in the order of the training and end after one epoch; take no more than are
        needed.
        """

    def moments(self) -> dict[str, tuple[str, Literal["min", "max"]]]:
        """By which metric of `glance` a network's best moment is chosen; the others are kept from
        the last one."""
        return dict.fromkeys(self.chosen, self.objective)

    def continues(self, schema: Schema) -> bool:
        """Whether a model that was trained on rows of that schema can be trained on with these."""
        return self.schema == schema

    def inherit(self, networks: Networks, member: Networks) -> None:
        """Begin with a model's weights; networks that it lacks stay fresh, and those without any
        are what `prepare` made of these rows.

        Raises:
            RuntimeError: a network has another form than here.
        """
        for name in networks.keys() & member.keys():
            if any(True for _ in networks[name].parameters()):
                networks[name].load_state_dict(member[name].state_dict())

    def space(self) -> dict[str, tuple[Any, ...]]:
        """What a sweep searches where it is not told: setting -> ("log" or "linear", low, high) or
        ("choice", value, ...)."""
        return {}

    def settle(self, networks: Networks, held_back: Iterable[Batch]) -> dict[str, Any] | None:
        """Fit to held-back rows what turns a trained network's opinions into answers, where the
        task has no category or labels to judge; tells what was fitted, for the model's card."""
        return None

    def perturb(self, batch: Batch) -> Batch:
        """The rows as another place might have recorded them, where that can be said; by its
        answers to these a recogniser is made to sound no surer than it will be elsewhere."""
        return batch

    @abstractmethod
    def draw(self, networks: Networks, condition: Batch) -> Draw:
        """One sample a row, with noise from `condition.row`."""

    # --- answers ----------------------------------------------------------------------------

    @abstractmethod
    def recognise(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Predictions, (B, ...) each: only what may be averaged over an ensemble.

        Where a target is a category or labels, `probability` (B, K) is the recogniser's opinion and
        `critic` (B, K) the critic's and `beside` (B, K) the other recogniser's, if the networks
        hold them; a `Judgement` weighs them and calibrates. `features` (B, D) are the space in
        which rows are compared, of the first member only; `look` (B, P), where there is one, is
        a plain one, by which rows of another kind are told whatever the recogniser sees in them.
        """

    @abstractmethod
    def score(self, networks: Networks, batch: Batch, target: Tensor) -> Tensor:
        """(B,), differentiable in the inputs: what an explanation explains."""

    def explain(self, model: Model, record: Record) -> dict[str, Any] | None:
        """What speaks for a row's answer, as JSON; None where a heat map would say it, or nothing
        can."""
        return None

    def compared(self, real: Batch, other: Batch) -> dict[str, float]:
        """Distances between two sets of rows of a table by its columns; 0 where they are alike."""
        return {}

    def doubts(self, rows: Iterator[Batch]) -> list[str]:
        """What looks wrong about training rows and a person should look at, a sentence each."""
        return []

    def accounted(self, model: Model, batch: Batch) -> dict[str, Any] | None:
        """Whether `explain` can be trusted: its `method`, whether it `passes`, and by what."""
        return None

    @abstractmethod
    def answer(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        """One row's averaged prediction as JSON; `record` is what `parse` made of the item."""

    @abstractmethod
    def generate(self, model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
        """Samples as a request asks for them; raises `UserError` for a request that cannot be."""

    @abstractmethod
    def measure(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        """Metrics of predictions for any set of rows, the objective among them; NaN where these
        rows have none. `value` and `known` are the rows as a `Batch` holds them."""

    def glance(
        self,
        prediction: Mapping[str, np.ndarray],
        value: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        """The metrics that are looked at in training: the objective at least."""
        return self.measure(prediction, value, known)

    @abstractmethod
    def sample(self, model: Model) -> bytes:
        """A PNG of what the generator makes, the same noise each time."""

    @abstractmethod
    def pictures(self, model: Model, batch: Batch) -> Iterator[tuple[str, bytes]]:
        """(caption, PNG) pairs by which a person judges what it generates beside real rows."""


def stack(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Records that hold the same fields, as columns; a field that is None is left out."""
    names = [name for name, value in records[0].items() if value is not None]
    return {name: np.stack([np.asarray(r[name]) for r in records]) for name in names}


def whole(request: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    """A whole number of a request for samples, within its bounds."""
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{key} is a whole number from {low} to {high}; got {value!r}")
    return value
