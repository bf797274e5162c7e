"""The generator says a molecule code by code; the critic tells said molecules from real ones."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray.blocks import low_precision
from aigc_ray.tasks.molecules import alphabet
from aigc_ray.tasks.molecules.chemistry import BITS, COUNTS, DESCRIPTORS

CONDITION = 64  # width of what the generator hears of wished properties
EMBEDDING = 128  # of the critic
DILATIONS = (1, 2, 4, 8)  # of its blocks, one after the other; the first layer has 1 too
GATE = 0.8  # share of generated molecules that the critic finds less real than those it lets pass
PATIENCE = 0.02  # with which what it finds of them is averaged over steps
KNOWN_BYTES = 2 << 20  # that tell whether a molecule was in training: ten bits each of 1.6 million
SHARED = 0.8  # states for so many rows, above which each row has its own
UNKNOWN = 1 << 20  # codes of the longest molecule, before there was one
PRIOR = 8192  # training molecules whose properties are kept, to wish for likely ones


class Generator(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over codes, told of properties at each of them.

    Args:
        properties: numbers that a molecule may be wished to have.
        width: of the state.
        bf16: multiply in bfloat16; the state stays in float32.
    """

    mean: Tensor
    scale: Tensor
    prior: Tensor
    seen: Tensor
    longest: Tensor
    change: Tensor
    closes: Tensor
    rings: Tensor

    def __init__(self, properties: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.width, self.bf16 = width, bf16
        # Each number, whether it is told, and whether the SMILES begins anywhere.
        self.wish = nn.Sequential(
            nn.Linear(2 * properties + 1, 2 * CONDITION),
            nn.SiLU(),
            nn.Linear(2 * CONDITION, CONDITION),
        )
        self.start = nn.Linear(CONDITION, width)
        # On the one-hot code before, where 0 is the beginning, beside the wish.
        self.gru = nn.GRU(alphabet.SIZE + CONDITION, width, batch_first=True)
        self.head = nn.Linear(width, alphabet.SIZE)
        self.register_buffer("mean", torch.zeros(properties))
        self.register_buffer("scale", torch.ones(properties))
        self.register_buffer("prior", torch.zeros(PRIOR, properties))
        self.register_buffer("seen", torch.ones(alphabet.SIZE, dtype=torch.bool))
        self.register_buffer("longest", torch.tensor(UNKNOWN))
        for name, effect in zip(("change", "closes", "rings"), alphabet.effects(), strict=True):
            self.register_buffer(name, torch.from_numpy(effect), persistent=False)
        self.most_rings = int(self.rings.max()).bit_length()

    def hear(self, number: Tensor, told: Tensor, rooted: Tensor) -> Tensor:
        """(B, CONDITION) of wished properties (B, P), those that are told, and whether the SMILES
        begins anywhere (B,)."""
        standard = torch.where(told, (number - self.mean) / self.scale, 0.0).clamp(-5, 5)
        heard: Tensor = self.wish(torch.cat([standard, told.float(), rooted.float()[:, None]], 1))
        return heard

    def begin(self, heard: Tensor) -> tuple[Tensor, Tensor]:
        """The first state (B, width), and what the wish adds to the gates at each code."""
        weight, _, bias, _ = self.gru.all_weights[0]
        return torch.tanh(self.start(heard)), F.linear(heard, weight[:, alphabet.SIZE :], bias)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those of a step: on a code, on the state, and their bias."""
        on_code, on_state, _, bias = self.gru.all_weights[0]
        low = torch.bfloat16 if self.bf16 else torch.float32
        return on_code.t().contiguous(), on_state.to(low), bias.to(low)

    def step(self, state: Tensor, said: Tensor, on_state: Tensor, bias: Tensor) -> Tensor:
        """The state (B, width) after what a code and the wish add to the gates (B, 3 width)."""
        kept = F.linear(state.to(on_state.dtype), on_state, bias).float()
        two = 2 * self.width
        reset, update = torch.sigmoid(said[:, :two] + kept[:, :two]).chunk(2, 1)
        new = torch.tanh(torch.addcmul(said[:, two:], reset, kept[:, two:]))
        return torch.lerp(new, state, update)

    def cannot(self, depth: Tensor, rings: Tensor) -> Tensor:
        """(B, SIZE) codes that cannot follow where so many branches and these rings (B,) are open:
        no branch is closed that is not open, and a molecule ends when all is closed (a grammar's
        mask, after Kusner et al. 2017)."""
        found = self.closes > depth[:, None]
        found[:, alphabet.END] = (depth > 0) | (rings > 0)
        return found

    def log_likelihood(self, codes: Tensor, heard: Tensor) -> Tensor:
        """(B,) of codes (B, L), each up to its first end, among those that can follow."""
        lengths = (codes > 0).sum(1) + 1
        order = lengths.argsort(descending=True, stable=True)
        sorted_lengths = lengths[order]
        most = int(sorted_lengths[0])
        sorted_codes = F.pad(codes, (0, 1))[order, :most]
        if codes.is_cuda:
            states = self._fused(sorted_codes, sorted_lengths, heard[order])
        else:
            states = self._unrolled(sorted_codes, sorted_lengths, heard[order])
        # States and codes that are said from them, a code's rows after another's.
        there = torch.arange(most, device=codes.device)[:, None] < sorted_lengths[None]  # (T, B)
        said, row = sorted_codes.t()[there], order.expand(most, -1)[there]
        depth = F.pad(self.change[sorted_codes].cumsum(1), (1, 0))[:, :-1]
        rings = self._open_rings(sorted_codes)
        with low_precision(self.bf16, states.device):
            logits = self.head(states)
        cannot = self.cannot(depth.t()[there], rings.t()[there])
        cannot.scatter_(1, said[:, None], False)  # a sample too long to be ended ends in the midst
        logits = logits.masked_fill(cannot, -torch.inf)
        loss = F.cross_entropy(logits.float(), said, reduction="none")
        return -loss.new_zeros(len(codes)).index_add(0, row, loss)

    def _open_rings(self, codes: Tensor) -> Tensor:
        """(B, L) whether a ring is open before each code."""
        each = torch.arange(self.most_rings, device=codes.device)
        times = (self.rings[codes, None] >> each & 1).to(torch.uint8).cumsum(1, dtype=torch.uint8)
        return F.pad((times & 1).bool().any(2), (1, 0))[:, :-1]

    def _unrolled(self, codes: Tensor, lengths: Tensor, heard: Tensor) -> Tensor:
        """(sum of lengths, width): the states before each code, as `_fused` has them, without its
        products with one-hot rows."""
        state, gates = self.begin(heard)
        counts = (lengths[None] > torch.arange(codes.shape[1])[:, None]).sum(1).tolist()
        before = torch.zeros(len(codes), dtype=torch.int64)
        states, (on_code, *weights) = [], self.weights()
        for place, count in enumerate(counts):
            said = F.embedding(before[:count], on_code) + gates[:count]
            state = self.step(state[:count], said, *weights)
            states.append(state)
            before = codes[:, place]
        return torch.cat(states)

    def _fused(self, codes: Tensor, lengths: Tensor, heard: Tensor) -> Tensor:
        before = F.one_hot(F.pad(codes, (1, 0))[:, :-1], alphabet.SIZE).to(heard.dtype)
        told = heard[:, None].expand(-1, before.shape[1], -1)
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.cat([before, told], 2), lengths.cpu(), batch_first=True
        )
        states, _ = self.gru(packed, torch.tanh(self.start(heard))[None])
        return states.data

    def logits(self, state: Tensor) -> Tensor:
        """(B, SIZE); what was in no training molecule is not said."""
        with low_precision(self.bf16, state.device):
            found: Tensor = self.head(state).float()
        return found.masked_fill(~self.seen, -torch.inf)

    @torch.no_grad()
    def say(
        self,
        heard: Tensor,
        random: Tensor,
        *,
        prompt: Tensor | None = None,
        temperature: float = 1.0,
        unheard: Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """(B, L) codes, 0 from the end on. What is longer than any training molecule is broken off:
        nearly all of it has a ring that it cannot close any more.

        Args:
            heard: (B, CONDITION), or where nothing is unheard one row for all, which is quicker.
            random: (B, L) uniform numbers, one for each code.
            prompt: (B, P) codes to begin with, as far as they are not 0.
            unheard, guidance: logits are moved away from those under `unheard`, by `guidance` times
                their difference (after Ho and Salimans 2022).
        """
        count, length = random.shape
        state, gates = self.begin(heard)
        on_code, *weights = self.weights()
        codes = torch.zeros(count, length, dtype=torch.int64, device=random.device)
        active = torch.arange(count, device=random.device)  # rows that go on
        before = codes[:, 0]
        depth, rings = torch.zeros(2, count, dtype=torch.int64, device=random.device)  # open
        # Rows that hear the same and have said the same have one state, until there are too few
        # such rows: `shared` is which of the states is a row's.
        shared = None
        if len(heard) == 1 and unheard is None:
            on_code, shared = on_code + gates, torch.zeros_like(before)
        elif guidance and unheard is not None:
            first, away = self.begin(unheard)
            state, gates = torch.cat([state, first]), torch.cat([gates, away])
        alike = shared is not None
        for place in range(length if prompt is not None else min(length, int(self.longest))):
            twice = 1 if alike else len(state) // len(active)
            if shared is not None:
                different, shared = (shared * alphabet.SIZE + before).unique(return_inverse=True)
                state = state[different // alphabet.SIZE]
                said = on_code[different % alphabet.SIZE]
            else:
                said = F.embedding(before.repeat(twice), on_code)
            state = self.step(state, said if alike else said + gates, *weights)
            logits = self.logits(state)
            if shared is not None:
                logits = logits[shared]
                if len(state) > SHARED * len(active):
                    state, shared = state[shared], None
            if twice == 2:
                near, far = logits.chunk(2)
                logits = near + guidance * (near - far).nan_to_num(0.0)
            logits = logits.masked_fill(self.cannot(depth, rings), -torch.inf)
            chance = torch.softmax(logits / temperature, 1).cumsum(1)
            code = (chance <= random[active, place : place + 1] * chance[:, -1:]).sum(1)
            if prompt is not None and place < prompt.shape[1]:
                told = prompt[active, place]
                code = torch.where(told > 0, told, code)
            codes[active, place] = code
            on = code > 0
            if not on.any():
                break
            if not on.all():
                active, code, both = active[on], code[on], on.repeat(twice)
                if shared is None:
                    state = state[both]
                else:
                    shared = shared[on]
                gates = gates if alike else gates[both]
                depth, rings = depth[on], rings[on]
            depth = depth + self.change[code]
            rings = rings ^ self.rings[code]
            before = code
        return codes


class Block(nn.Module):
    """What is added to (N, width): a convolution over a place and two beside it, and a second one
    over the place alone."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(3 * width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, sides: tuple[Tensor, Tensor]) -> Tensor:
        seen = F.silu(_convolved(self.wide, F.silu(hidden), sides))
        found: Tensor = self.narrow(self.dropout(seen))
        return found


def _convolved(layer: nn.Linear, hidden: Tensor, sides: tuple[Tensor, Tensor]) -> Tensor:
    """`layer` of each place (N, C) between those at `sides`, where N stands for none."""
    left, right = sides
    ended = F.pad(hidden, (0, 0, 0, 1))
    found: Tensor = layer(torch.cat([ended[left], hidden, ended[right]], 1))
    return found


class Critic(nn.Module):
    """Dilated convolutions over codes, each row by itself: how real it is under its properties.

    What it makes of the codes must also tell the properties, whether it is told them or not.

    Args:
        properties: numbers that it reads beside the codes.
        width: of the convolutions.
    """

    running_gate: Tensor

    def __init__(self, properties: int, width: int, dropout: float, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.embedding = nn.Embedding(alphabet.SIZE, EMBEDDING)
        self.first = nn.Linear(3 * EMBEDDING, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in DILATIONS)
        self.properties = nn.Linear(2 * width, properties)
        self.wish = nn.Linear(2 * properties, 2 * width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        # The logit that `GATE` of the generated molecules stay below.
        self.register_buffer("running_gate", torch.zeros(()))

    def read(self, codes: Tensor) -> Tensor:
        """(B, 2 width) of codes (B, L), each up to its first end.

        Rows are laid one behind the other, without what is behind their ends: a convolution is a
        product with each place beside its neighbours, and a row of zeros stands beside the last.
        """
        codes = codes[:, : int((codes > 0).sum(1).max()) + 1]
        there = F.pad(codes, (1, 0), value=1)[:, :-1] > 0
        count = int(there.sum())
        place = torch.full_like(codes, count)
        place[there] = torch.arange(count, device=codes.device)
        sides: dict[int, tuple[Tensor, Tensor]] = {}
        for far in DILATIONS:
            wide = F.pad(place, (far, far), value=count)
            sides[far] = wide[:, : -2 * far][there], wide[:, 2 * far :][there]
        with low_precision(self.bf16, codes.device):
            hidden = _convolved(self.first, self.embedding(codes[there]), sides[1])
            for block, far in zip(self.blocks, DILATIONS, strict=True):
                hidden = hidden + block(hidden, sides[far])
        padded = F.pad(hidden.float(), (0, 0, 0, 1), value=-torch.inf)[place]  # (B, L, width)
        mean = padded.masked_fill(~there[..., None], 0.0).sum(1) / there.sum(1)[:, None]
        return torch.cat([mean, padded.amax(1)], 1)

    def judge(self, seen: Tensor, number: Tensor, told: Tensor) -> Tensor:
        """(B,) logits of what `read` made of molecules, under standardised properties (B, P)."""
        heard = self.wish(torch.cat([number, told.to(number.dtype)], 1))
        found: Tensor = self.out(seen + heard)[:, 0]
        return found

    @torch.no_grad()
    def follow(self, logits: Tensor) -> None:
        """Let the gate follow what generated molecules get."""
        if len(logits):
            self.running_gate.lerp_(torch.quantile(logits.float(), GATE), PATIENCE)


class Memory(nn.Module):
    """What is kept of the training molecules, to say how near to them a generated one is.

    Args:
        references: molecules that are kept whole, at most.
        length: of their codes.
    """

    known: Tensor
    codes: Tensor
    fingerprints: Tensor

    def __init__(self, references: int, length: int) -> None:
        super().__init__()
        self.register_buffer("known", torch.zeros(KNOWN_BYTES, dtype=torch.uint8))
        self.register_buffer("codes", torch.zeros(references, length, dtype=torch.uint8))
        size = references, BITS // 8
        self.register_buffer("fingerprints", torch.zeros(size, dtype=torch.uint8))


class Recogniser(nn.Module):
    """Several small perceptrons beside each other, whose differences say how unsure they are.

    Args:
        activities: that are told.
        width: of each one's layers.
        voices: how many there are.
    """

    mean: Tensor
    scale: Tensor
    heard: Tensor
    target_mean: Tensor
    target_scale: Tensor
    temperature: Tensor
    margin: Tensor
    reach: Tensor

    def __init__(self, activities: int, width: int, voices: int, dropout: float) -> None:
        super().__init__()
        sizes = (DESCRIPTORS + COUNTS, width, width, activities)
        self.weights = nn.ParameterList(
            (torch.rand(voices, a, b) * 2 - 1) * a**-0.5 for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(voices, 1, size) for size in sizes[1:])
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(DESCRIPTORS))
        self.register_buffer("scale", torch.ones(DESCRIPTORS))
        self.register_buffer("heard", torch.ones(COUNTS))
        self.register_buffer("target_mean", torch.zeros(activities))
        self.register_buffer("target_scale", torch.ones(activities))
        # Fitted to held-back molecules: of what is yes or no; how far numbers are missed; and the
        # similarity to a training molecule below which one is unlike those learned from.
        self.register_buffer("temperature", torch.ones(activities))
        self.register_buffer("margin", torch.zeros(activities))
        self.register_buffer("reach", torch.zeros(()))

    def forward(self, environments: Tensor, descriptors: Tensor) -> Tensor:
        """(B, voices, activities) of counts (B, COUNTS) and numbers (B, DESCRIPTORS), standard."""
        standard = ((descriptors - self.mean) / self.scale).clamp(-5, 5)
        counted = torch.log1p(environments.float()) * self.heard
        hidden = torch.cat([standard, counted], 1).expand(len(self.weights[0]), -1, -1)
        hidden = F.dropout(hidden, self.dropout / 4, self.training)
        last = len(self.weights) - 1
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if place < last:
                hidden = F.dropout(F.silu(hidden), self.dropout, self.training)
        return hidden.transpose(0, 1)
