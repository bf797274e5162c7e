"""Event times of a patient as a generator makes them, and the critic that judges them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import noise

QUANTILES = 8  # pieces that a number is cut into, by the training rows' quantiles
FEW = 5  # rows whose mean is an end of a column: no patient's own extreme is kept
LOG_HAZARD = 8.0  # at most, either way of the base: e^8 is three thousand times as likely


class Encoder(nn.Module):
    """A patient's columns as one vector: numbers, pieces of numbers, categories, what is missing.

    A number is given as it is, standardised, and in pieces: how far it goes through each interval
    between the training rows' quantiles (Gorishniy et al. 2022, "On embeddings for numerical
    features in tabular deep learning"). Where it is missing, a learned value stands.

    Args:
        numbers: columns that hold numbers.
        categories: for each column of categories, how many there are.
    """

    mean: Tensor
    scale: Tensor
    cuts: Tensor
    centre: Tensor

    def __init__(self, numbers: int, categories: tuple[int, ...]) -> None:
        super().__init__()
        self.numbers, self.categories = numbers, categories
        self.size = numbers * (QUANTILES + 2) + sum(count + 1 for count in categories)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.register_buffer("cuts", torch.zeros(numbers, QUANTILES + 1))
        # What a patient is explained against: the mean of the training rows, encoded.
        self.register_buffer("centre", torch.zeros(self.size))
        self.missing = nn.Parameter(torch.zeros(numbers, QUANTILES + 1))

    def fit(self, number: Tensor, known: Tensor, kinds: Sequence[Tensor]) -> None:
        """Means, spreads and quantiles of the training rows (as in `forward`); what is not known is
        left out."""
        for column in range(self.numbers):
            values = number[known[:, column], column].double()
            if not len(values):
                continue
            self.mean[column] = values.mean()
            self.scale[column] = values.std().clamp(min=1e-6) if len(values) > 1 else 1.0
            self.cuts[column] = _quantiles(values, torch.linspace(0, 1, QUANTILES + 1))
        self.centre.copy_(self(number, known, kinds).mean(0))

    def columns(self) -> list[Tensor]:
        """For each number and then each column of categories, where it lies in an encoded row."""
        place, n = torch.arange(self.size), self.numbers
        pieces = place[: n * (QUANTILES + 1)].reshape(n, QUANTILES + 1)
        flags = place[n * (QUANTILES + 1) :][:n, None]
        found = list(torch.cat([pieces, flags], 1))
        return found + list(
            place[n * (QUANTILES + 2) :].split([count + 1 for count in self.categories])
        )

    def forward(self, number: Tensor, known: Tensor, kinds: Sequence[Tensor]) -> Tensor:
        """(B, size) of (B, numbers), bool (B, numbers), and for each column of categories
        (B, count + 1) of zeros and a one, the last where it is missing."""
        plain = ((number - self.mean) / self.scale).clamp(-4, 4)
        low, high = self.cuts[:, :-1], self.cuts[:, 1:]
        # Where two quantiles are the same, the piece is a step.
        wide = (high - low).clamp(min=1e-6 * self.scale[:, None])
        pieces = ((number[:, :, None] - low) / wide).clamp(0, 1)
        seen = torch.cat([plain[:, :, None], pieces], 2)
        seen = torch.where(known[:, :, None], seen, self.missing)
        return torch.cat([seen.flatten(1), (~known).float(), *kinds], 1)


class Times(nn.Module):
    """The distribution of a patient's time to the event: a mixture of piecewise constant hazards.

    The members of the mixture share their weights but for a scale of each input and output
    ("BatchEnsemble"; for tables: Gorishniy et al. 2025, "TabM"), so one network is an ensemble, and
    which member makes a time is part of the generator's noise. A survival curve is the mean of the
    members' exp(−H): exact, 1 at the start, never rising.

    Args:
        encoder: of patients.
        members: of the mixture.
        bins: intervals of constant hazard, between quantiles of the training rows' event times.
    """

    edges: Tensor
    base: Tensor
    waves: Tensor

    def __init__(
        self, encoder: Encoder, *, members: int, bins: int, width: int, depth: int, waves: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.members, self.bins = encoder, members, bins
        self.register_buffer("edges", torch.linspace(0, 1, bins + 1))
        self.register_buffer("base", torch.zeros(bins))  # log hazard of all patients together
        place = (torch.arange(bins) + 0.5) / bins
        shapes = [torch.cos(math.pi * wave * place) for wave in range(waves)]
        self.register_buffer("waves", torch.stack(shapes), persistent=False)
        sizes = [encoder.size, *[width] * depth]
        self.layers = nn.ModuleList(
            Shared(a, b, members, first=n == 0) for n, (a, b) in enumerate(pairwise(sizes))
        )
        self.dropout = dropout
        self.straight = nn.Linear(encoder.size, waves, bias=False)
        self.head = nn.Parameter(torch.randn(members, width, waves) * 0.01)
        nn.init.zeros_(self.straight.weight)

    def fit(self, time: Tensor, event: Tensor) -> None:
        """Intervals and the hazards of all patients together, from (N,) times and bool events."""
        time = time.double()
        died = time[event] if event.any() else time
        # The first interval ends where events begin: where none happen (a follow-up that begins on
        # the third day), none are foretold. The rest hold equal shares of the events.
        steps = torch.linspace(0, 1, self.bins, dtype=torch.float64)[:-1]
        inner = _between(died, torch.quantile(died, steps, interpolation="lower"))
        end = time.max().clamp(min=1e-6)
        edges = torch.cat([inner.new_zeros(1), inner, end[None]])
        # Ties would leave intervals without width: each is at least a thousandth of its share.
        least = end / self.bins * 1e-3
        for place in range(1, len(edges)):
            edges[place] = torch.maximum(edges[place], edges[place - 1] + least)
        self.edges.copy_(edges)
        low, high = self.edges[:-1].double(), self.edges[1:].double()
        exposed = (time[:, None].clamp(max=high) - low).clamp(min=0).sum(0)
        inside = self.interval(time.float())
        events = torch.zeros(self.bins, dtype=torch.float64)
        events.index_add_(0, inside, event.double())
        self.base.copy_(torch.log((events + 0.5) / (exposed + 0.5 * (high - low))))

    def interval(self, time: Tensor) -> Tensor:
        """int64: the interval (open to the left) that a time lies in."""
        return (torch.searchsorted(self.edges, time.contiguous()) - 1).clamp(0, self.bins - 1)

    def forward(self, seen: Tensor, row: Tensor | None = None) -> Tensor:
        """(B, members, bins) logarithms of hazards per unit of time, of encoded patients.

        Args:
            row: (B,) keys, in training: units are dropped by the row's own noise, so that it is the
                same for any number of workers.
        """
        hidden = seen
        for number, layer in enumerate(self.layers):
            hidden = F.silu(layer(hidden))
            if row is not None and self.dropout:
                kept = noise.uniform(row, f"dropout/{number}", (1, hidden.shape[2])) >= self.dropout
                hidden = hidden * kept / (1 - self.dropout)
        shape = torch.einsum("bmw,mwj->bmj", hidden, self.head) + self.straight(seen)[:, None]
        return self._hazard(shape)

    def of(self, seen: Tensor, member: Tensor) -> Tensor:
        """(B, bins): the same of one member (B,) for each patient, at its share of the cost."""
        hidden = seen
        for layer in self.layers:
            assert isinstance(layer, Shared)
            hidden = F.silu(layer.of(hidden, member))
        shape = torch.einsum("bw,bwj->bj", hidden, self.head[member]) + self.straight(seen)
        return self._hazard(shape)

    def _hazard(self, shape: Tensor) -> Tensor:
        return self.base + LOG_HAZARD * torch.tanh(shape @ self.waves / LOG_HAZARD)

    # --- what hazards mean --------------------------------------------------------------------

    def cumulated(self, log_hazard: Tensor, time: Tensor) -> Tensor:
        """H (B, members, T) at times (B, T) or (1, T); beyond the last edge its hazard goes on."""
        hazard = log_hazard.exp()
        at_edges = F.pad((hazard * self.edges.diff()).cumsum(2), (1, 0))
        place = self.interval(time).expand(len(hazard), -1)
        index = place[:, None].expand(-1, self.members, -1)
        since = (time - self.edges[place])[:, None]
        return at_edges.gather(2, index) + hazard.gather(2, index) * since

    def share(self, time: Tensor) -> Tensor:
        """(B,) of (B,): about how many of the events are sooner, 0 to 1."""
        place = self.interval(time)
        inside = (time - self.edges[place]) / self.edges.diff()[place]
        share: Tensor = (place + inside.clamp(0, 1)) / self.bins
        return share

    def log_likelihood(self, log_hazard: Tensor, time: Tensor, event: Tensor) -> Tensor:
        """(B, members) of times (B,) and events (B,), 1 or 0."""
        gone = self.cumulated(log_hazard, time[:, None])[:, :, 0]
        index = self.interval(time)[:, None, None].expand(-1, self.members, 1)
        return event[:, None] * log_hazard.gather(2, index)[:, :, 0] - gone

    def drawn(self, log_hazard: Tensor, spent: Tensor) -> Tensor:
        """(B,) times at which the hazards (B, bins) have cumulated to `spent` (B,), whose
        distribution is the standard exponential."""
        hazard = log_hazard.exp()
        at_edges = F.pad((hazard * self.edges.diff()).cumsum(1), (1, 0))
        place = (torch.searchsorted(at_edges, spent[:, None]) - 1).clamp(0, self.bins - 1)
        left = spent[:, None] - at_edges.gather(1, place)
        return (self.edges[place] + left / hazard.gather(1, place))[:, 0]


class Shared(nn.Module):
    """A linear layer that members share but for a scale of each input and output and a bias."""

    def __init__(self, inputs: int, outputs: int, members: int, *, first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        bound = inputs**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        # The first layer's signs tell the members apart; the rest start alike (TabM).
        signs = torch.randint(0, 2, (members, inputs)).float() * 2 - 1
        self.into = nn.Parameter(signs if first else torch.ones(members, inputs))
        self.out = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, members, outputs) of (B, members, inputs), or of (B, inputs) that all are given."""
        if x.dim() == 3:
            return ((x * self.into) @ self.weight) * self.out + self.bias
        # The members' weights are fewer numbers than the members' inputs.
        every = self.into.T[:, :, None] * self.weight[:, None] * self.out  # (inputs, members, ...)
        return (x @ every.flatten(1)).unflatten(1, self.out.shape) + self.bias

    def of(self, x: Tensor, member: Tensor) -> Tensor:
        """(B, outputs) of (B, inputs) by one member (B,) for each row."""
        return ((x * self.into[member]) @ self.weight) * self.out[member] + self.bias[member]


class Clock(nn.Module):
    """Times as shares of the training rows' observed times that are shorter, 0 to 1 and a little
    beyond: what the critic reads, whatever the unit."""

    knots: Tensor

    def __init__(self, knots: int = 33) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(0, 1, knots))

    def fit(self, time: Tensor) -> None:
        """Of (N,) observed times, censored or not."""
        steps = torch.linspace(0, 1, len(self.knots), dtype=torch.float64)
        found = torch.quantile(time.double(), steps)
        found[0] = 0
        least = found[-1].clamp(min=1e-6) * 1e-6
        for place in range(1, len(found)):
            found[place] = torch.maximum(found[place], found[place - 1] + least)
        self.knots.copy_(found)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) of (B,)."""
        place = (torch.searchsorted(self.knots, time.contiguous()) - 1).clamp(
            0, len(self.knots) - 2
        )
        low, high = self.knots[place], self.knots[place + 1]
        share: Tensor = (place + (time - low) / (high - low)) / (len(self.knots) - 1)
        return share.clamp(max=1.5)


class Critic(nn.Module):
    """One logit for an observed triple: a patient, a time, and whether it is the event's.

    It sees censored rows as they are, censored: with the events alone the real times would be
    those shorter than the censoring.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.clock = Clock()
        self.body = nn.Sequential(
            nn.Linear(encoder.size + 6, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1, bias=False),
        )

    def joined(self, seen: Tensor, time: Tensor, event: Tensor) -> Tensor:
        """(B, size + 6): encoded patients (B, size), and the ends (B,) of those who had the event
        (0 or 1) apart from those who were lost from sight."""
        share = self.clock(time)
        told = torch.stack([share, share.square(), torch.sin(math.pi * share)], 1)
        return torch.cat([seen, told * event[:, None], told * (1 - event[:, None])], 1)

    def forward(self, joined: Tensor) -> Tensor:
        """(B,) of what `joined` makes."""
        logit: Tensor = self.body(joined)
        return logit[:, 0]


class Cohort(nn.Module):
    """New patients: a Gaussian copula of the training rows' columns.

    Each column has its own distribution (quantiles of numbers, shares of categories, how often it
    is missing), tied together by the correlations of their normal scores (Patki et al. 2016, "The
    Synthetic Data Vault"). It is fitted, not trained; what it lacks, a critic makes good.

    Args:
        numbers: columns that hold numbers.
        categories: for each column of categories, how many there are.
    """

    values: Tensor
    step: Tensor
    rate: Tensor
    shares: Tensor
    tie: Tensor

    # A number is looked up by its normal score, so that the knots lie close where values are rare:
    # between even quantiles, the last of a long tail would lie anywhere up to the largest value.
    KNOTS, REACH = 65, 3.0

    def __init__(self, numbers: int, categories: tuple[int, ...]) -> None:
        super().__init__()
        self.numbers, self.categories = numbers, categories
        self.scores = 2 * numbers + len(categories)
        most = max(categories, default=0) + 1
        self.register_buffer("values", torch.zeros(numbers, self.KNOTS))
        self.register_buffer("step", torch.zeros(numbers))  # that values are multiples of; 0: none
        self.register_buffer("rate", torch.zeros(numbers))  # of missing values
        self.register_buffer("shares", torch.zeros(len(categories), most))  # the last: missing
        self.register_buffer("tie", torch.eye(self.scores))  # Cholesky factor of the correlations

    @torch.no_grad()
    def fit(self, number: Tensor, known: Tensor, codes: Sequence[Tensor]) -> None:
        """To (N, numbers), bool (N, numbers), and for each column of categories int64 (N,), the
        number of categories where it is missing."""
        count = len(number)
        levels = torch.special.ndtr(torch.linspace(-self.REACH, self.REACH, self.KNOTS))
        scores = torch.zeros(count, self.scores, dtype=torch.float64)
        for column in range(self.numbers):
            here = known[:, column]
            values = number[here, column].double()
            if not len(values):
                continue
            self.values[column] = _quantiles(values, levels)
            self.step[column] = _step(values)
            self.rate[column] = 1 - here.double().mean()
            scores[here, column] = _scores(number[here, column])
            scores[:, self.numbers + column] = _scores(~here)
        for column, (kinds, code) in enumerate(zip(self.categories, codes, strict=True)):
            share = torch.bincount(code, minlength=kinds + 1).double() / count
            self.shares[column] = 0
            self.shares[column, :kinds] = share[:kinds]
            self.shares[column, -1] = share[kinds]
            scores[:, 2 * self.numbers + column] = _scores(code)
        self.tie.copy_(torch.linalg.cholesky(_correlations(scores)))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Numbers (B, numbers), which are known, and for each column of categories int64 (B,), the
        number of categories where it is missing; of noise (B, scores)."""
        score = noise @ self.tie.T
        place = torch.special.ndtr(score).clamp(1e-6, 1 - 1e-6)
        n = self.numbers
        spot = (score[:, :n] / self.REACH + 1).clamp(0, 2) / 2 * (self.KNOTS - 1)
        index = spot.floor().long().clamp(max=self.KNOTS - 2)
        columns = torch.arange(n, device=noise.device)
        low, high = self.values[columns, index], self.values[columns, index + 1]
        number = low + (high - low) * (spot - index)
        coarse = torch.where(self.step > 0, self.step, 1.0)
        number = torch.where(self.step > 0, (number / coarse).round() * coarse, number)
        known = place[:, n : 2 * n] < 1 - self.rate
        codes = []
        for column, count in enumerate(self.categories):
            edges = self.shares[column, :count].cumsum(0)
            codes.append(torch.searchsorted(edges, place[:, 2 * n + column].contiguous()))
        return number, known, codes


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of (N,) at rising levels, none beyond the few smallest and largest values; the
    first and the last are the means of these, and of what else lies beyond them."""
    values = values.sort().values
    count = len(values)
    least = min(0.5, FEW / count)
    found = torch.quantile(values, levels.to(values.dtype).clamp(least, 1 - least))
    low, high = (max(FEW, round(count * float(share))) for share in (levels[0], 1 - levels[-1]))
    found[0], found[-1] = values[:low].mean(), values[-high:].mean()
    return found.cummax(0).values


def _between(values: Tensor, chosen: Tensor) -> Tensor:
    """For each of the `chosen` ones of (N,) values, the middle between it and the next smaller one,
    so that an event of a whole day stands in the middle of the day's interval."""
    distinct = values.unique()
    place = torch.searchsorted(distinct, chosen)
    first = distinct[:1] - (distinct.diff()[:1] if len(distinct) > 1 else distinct[:1])
    below = torch.cat([first.clamp(min=0), distinct])[place]
    return (below + chosen) / 2


def _step(values: Tensor) -> float:
    """1, .1, .01 or .001, the largest that all values are multiples of, or 0."""
    for step in (1.0, 0.1, 0.01, 0.001):
        if ((values / step - (values / step).round()).abs() < 1e-3).all():
            return step
    return 0.0


def _scores(values: Tensor) -> Tensor:
    """(N,) of (N,): the mean of a normal variable where its ranks are those of the value.

    A value that many rows share, such as a category, stands for a whole interval of ranks.
    """
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    share = counts.double() / len(values)
    edges = F.pad(share.cumsum(0), (1, 0)).clamp(0, 1)
    height = torch.exp(-0.5 * torch.special.ndtri(edges).square()) / math.sqrt(2 * math.pi)
    return ((height[:-1] - height[1:]) / share)[inverse]


def _correlations(scores: Tensor) -> Tensor:
    """(D, D) of the normal variables behind scores (N, D), positive definite.

    Of a variable u a score m is the mean given its value, so cov(m, other) = rho var(m) for one
    that is cut into values, and about rho var(m) var(m') where both are.
    """
    spread = scores.var(0)
    alive = spread > 1e-6
    inverse = torch.where(alive, 1 / spread.clamp(min=1e-6), 0.0)
    found = (torch.cov(scores.T).reshape(len(spread), -1) * inverse * inverse[:, None]).clamp(-1, 1)
    found.fill_diagonal_(1.0)
    values, axes = torch.linalg.eigh(found)
    found = axes @ torch.diag(values.clamp(min=0.02)) @ axes.T
    size = found.diagonal().sqrt()
    return found / size / size[:, None]
