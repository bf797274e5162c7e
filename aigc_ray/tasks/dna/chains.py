"""What plain statistics say of each class: a mixture of Markov chains that know their position.

A chain says which letter comes next from the five before it, as often as in a part of the class's
sequences (rich in G and C, repetitive, …; the parts are found by expectation maximisation), and by
the position and the one letter before it, as often as in all of the class. The generator draws its
candidates from it, and the recogniser hears the odds between the classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ORDER = 5  # letters before, by which a chain says the next
PARTS = 8  # chains of a class, at most
ROWS_OF_PART = 250  # sequences of a class for each of its chains, at least
ROUNDS, ROUGH = 12, 2  # of expectation maximisation, and the order of the chains in it
PRIOR = 50.0  # letters that a context's parent (one letter less) counts for
PLACE_PRIOR = 20.0
CONTEXTS = sum(4**order for order in range(ORDER + 1))
_START = [sum(4**k for k in range(order)) for order in range(ORDER + 2)]  # of an order's contexts


class Contexts(NamedTuple):
    """Where in the tables the letters of sequences are looked up."""

    letter: Tensor  # (B, L) 0 to 3; 0 where it is not known
    known: Tensor  # (B, L) bool
    depth: Tensor  # (B, L) known letters right before it, 0 to ORDER
    words: Tensor  # (B, L) the number that those letters make; the last one is its lowest digit
    before: Tensor  # (B, L) the letter before it plus 1, or 0 where it is not known


def contexts(codes: Tensor) -> Contexts:
    """Of codes (B, L): 1 to 4 are A, C, G and T, 0 is a letter that is not known."""
    known = codes > 0
    letter = (codes - 1).clamp(min=0)
    depth, words, unbroken = torch.zeros_like(codes), torch.zeros_like(codes), known | True
    for back in range(1, min(ORDER, codes.shape[1] - 1) + 1):
        unbroken[:, :back] = False
        unbroken[:, back:] &= known[:, :-back]
        words[:, back:] += letter[:, :-back] * unbroken[:, back:] * 4 ** (back - 1)
        depth += unbroken
    before = torch.zeros_like(codes)
    before[:, 1:] = codes[:, :-1]
    return Contexts(letter, known, depth, words, before)


class Chains(nn.Module):
    """Counts of words and of letters by position; nothing in it is trained by gradients."""

    words: Tensor  # (K, PARTS, 4**ORDER, 4) letters after each context
    places: Tensor  # (K, L, 5, 4) letters at each position after the letter before it, 0 for none
    share: Tensor  # (K, PARTS) of a class's sequences

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("words", torch.zeros(classes, PARTS, 4**ORDER, 4))
        self.register_buffer("places", torch.zeros(classes, length, 5, 4))
        self.register_buffer("share", torch.full((classes, PARTS), 1.0 / PARTS))
        self._tables: tuple[Tensor, Tensor] | None = None

    # --- fitting ----------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, codes: Tensor, label: Tensor) -> None:
        """To sequences (N, L) of classes (N,)."""
        for number in range(len(self.words)):
            here = codes[label == number].long()
            if not len(here):
                continue
            at = contexts(here)
            parts = max(1, min(PARTS, len(here) // ROWS_OF_PART))
            belongs = _parted(at, here, parts)
            self.words[number] = 0
            self.words[number, :parts] = _words(at, belongs).to(self.words)
            self.share[number] = 0
            self.share[number, :parts] = belongs.mean(0).to(self.share)
            index = torch.arange(self.length) * 20 + at.before * 4 + at.letter
            counts = torch.bincount(index[at.known], minlength=self.length * 20)
            self.places[number] = counts.view(self.length, 5, 4).to(self.places)
        self._tables = None

    def forward(self, logits: Tensor, random: Tensor) -> Tensor:
        """As the generator's, but for the critic: the first of the candidates passes. What the
        adversarial part adds is told beside it."""
        return torch.zeros_like(logits[:, 0], dtype=torch.int64)

    # --- what they say ------------------------------------------------------------------------

    def tables(self) -> tuple[Tensor, Tensor]:
        """Logarithms: of the next letter's share after each context (K, PARTS, CONTEXTS, 4), and
        of what the position adds (K, L, 5, 4)."""
        if self._tables is None or self._tables[0].device != self.words.device:
            levels = _levels(self.words)
            below = torch.full_like(levels[0], 0.25)
            found = []
            for order, counts in enumerate(levels):
                if order:
                    below = below.repeat(1, 1, 4, 1)
                below = _mixed(counts, below, PRIOR)
                found.append(below)
            self._tables = torch.cat(found, 2).log(), self._place_odds(self.places)
        return self._tables

    def _place_odds(self, places: Tensor) -> Tensor:
        """(K, L, 5, 4) by how much a letter is likelier at its place than anywhere."""
        everywhere = places.sum(1, keepdim=True)
        return (_after(places) / _after(everywhere)).log()

    def _load_from_state_dict(self, *arguments: object) -> None:
        super()._load_from_state_dict(*arguments)
        self._tables = None

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor, own: Tensor | None = None) -> Tensor:
        """(B, K) of sequences (B, L) whose strand is not known, under each class.

        Args:
            own: (B,) the classes of rows that the chains were fitted to; under these a row is
                told of nearly as if it had not been among them.
        """
        strands = [self._parts(contexts(one)) for one in (codes, flipped(codes))]
        if own is not None:
            rows, at = torch.arange(len(codes), device=codes.device), contexts(codes)
            belongs = (strands[0][rows, own] + self._weights()[own]).softmax(1)
            strands[0][rows, own] = self._without(at, own, belongs)
        every = torch.stack(strands) + self._weights()
        return torch.logsumexp(every, (0, 3)) - math.log(2)

    def _weights(self) -> Tensor:
        return self.share.clamp(min=1e-9).log()

    def _parts(self, at: Contexts) -> Tensor:
        """(B, K, PARTS) log-likelihood under each chain."""
        table, odds = self.tables()
        start = torch.tensor(_START, device=at.words.device)
        index = (start[at.depth] + at.words) * 4 + at.letter  # (B, L)
        place = (torch.arange(self.length, device=index.device) * 5 + at.before) * 4
        flat = table.flatten(2)  # (K, M, CONTEXTS * 4)
        added = odds.flatten(1)  # (K, L * 20)
        found = []
        for number in range(len(flat)):
            log = flat[number][:, index] + added[number][place + at.letter]  # (M, B, L)
            whole = torch.zeros_like(log)
            for letter in range(4):
                other = index - at.letter + letter
                whole += (flat[number][:, other] + added[number][place + letter]).exp()
            found.append(((log - whole.log()) * at.known).sum(2).T)
        return torch.stack(found, 1)

    def _without(self, at: Contexts, own: Tensor, belongs: Tensor) -> Tensor:
        """(B, PARTS) as `_parts` of the own class, with the count of each letter taken away where
        it is asked for. (A word that a row holds twice is taken away once at a time: with a hundred
        rows of 40 letters a class an error of a tenth of a nat or two, beside seven to eleven
        without this.)"""
        once = F.one_hot(at.letter, 4) * at.known[:, :, None].float()
        taken = belongs[:, :, None, None] * once[:, None]  # (B, M, L, 4)
        below = torch.full_like(taken, 0.25)
        chosen = below
        for order, counts in enumerate(_levels(self.words)):
            here = (at.words % 4**order)[:, None]  # (B, 1, L)
            part = torch.arange(PARTS, device=own.device)[None, :, None]
            found = counts[own[:, None, None], part, here] - taken
            below = _mixed(found.clamp(min=0), below, PRIOR)
            chosen = torch.where((at.depth >= order)[:, None, :, None], below, chosen)
        position = torch.arange(self.length, device=own.device)
        places = self.places[own[:, None], position, at.before] - once  # (B, L, 4)
        here = _mixed(places.clamp(min=0), self._place_below(own), PLACE_PRIOR)
        everywhere = _after(self.places.sum(1, keepdim=True))[:, 0]
        log = chosen.log() + (here / everywhere[own[:, None], at.before]).log()[:, None]
        log = log - log.logsumexp(3, keepdim=True)
        letter = at.letter[:, None, :, None].expand(-1, PARTS, -1, 1)
        return (log.gather(3, letter)[..., 0] * at.known[:, None]).sum(2)

    def _place_below(self, own: Tensor) -> Tensor:
        """(B, L, 4) the share of letters at each position, whatever stands before."""
        return _mixed(self.places.sum(2), torch.tensor(0.25), PLACE_PRIOR)[own]

    @torch.no_grad()
    def say(self, label: Tensor, random: Tensor, fixed: Tensor | None = None) -> Tensor:
        """Codes (B, L) of sequences of these classes (B,).

        Args:
            random: (B, L + 1) from 0 to 1.
            fixed: (B, L) codes that are to stand where they are not 0.
        """
        table, odds = self.tables()
        total = self.share.cumsum(1)[label]
        part = (random[:, :1] * total[:, -1:] > total).sum(1).clamp(max=PARTS - 1)
        # Looked up place by place: a copy of a chain for each row would take longer than all else.
        chain = (label * PARTS + part) * table.shape[2]
        table, odds = table.flatten(0, 2), odds.flatten(0, 2)  # (…, 4)
        codes = torch.zeros(len(label), self.length + 1, dtype=torch.int64, device=label.device)
        words = torch.zeros_like(label)
        for place in range(self.length):
            depth = min(place, ORDER)
            log = table[chain + _START[depth] + words % 4**depth]
            near = odds[(label * self.length + place) * 5 + codes[:, place]]
            share = (log + near).softmax(1).cumsum(1)
            letter = (random[:, place + 1 : place + 2] * share[:, -1:] > share).sum(1).clamp(max=3)
            if fixed is not None:
                letter = torch.where(fixed[:, place] > 0, fixed[:, place] - 1, letter)
            codes[:, place + 1] = letter + 1
            words = (words * 4 + letter) % 4**ORDER
        return codes[:, 1:]


def flipped(codes: Tensor) -> Tensor:
    """The other strand: from the end to the beginning, each letter by its complement."""
    return torch.where(codes > 0, 5 - codes, codes).flip(1)


def _mixed(counts: Tensor, below: Tensor, prior: float) -> Tensor:
    """Shares of letters (…, 4), where few were counted nearer to those of the shorter context."""
    return (counts + prior * below) / (counts.sum(-1, keepdim=True) + prior)


def _after(places: Tensor) -> Tensor:
    """(…, 5, 4) shares of letters by the letter before, at each place."""
    alone = _mixed(places.sum(-2, keepdim=True), torch.tensor(0.25), PLACE_PRIOR)
    return _mixed(places, alone, PLACE_PRIOR)


def _levels(words: Tensor) -> list[Tensor]:
    """Counts by context of 0 to ORDER letters: (…, 4**order, 4) each."""
    found = [words]
    for order in range(ORDER, 0, -1):
        # The letter that lies farthest back is a word's highest digit.
        found.append(found[-1].unflatten(-2, (4, 4 ** (order - 1))).sum(-3))
    return found[::-1]


def _words(at: Contexts, belongs: Tensor) -> Tensor:
    """(M, 4**ORDER, 4) letters after whole contexts, in sequences that belong (N, M) to parts."""
    whole = at.known & (at.depth == ORDER)
    index = (at.words * 4 + at.letter)[whole]
    count = whole.sum(1)
    found = []
    for part in belongs.T:
        weights = part.double().repeat_interleave(count)
        found.append(torch.bincount(index, weights, minlength=4 ** (ORDER + 1)))
    return torch.stack(found).view(-1, 4**ORDER, 4)


def _parted(at: Contexts, codes: Tensor, parts: int) -> Tensor:
    """(N, M) to which chain each sequence belongs: expectation maximisation of a mixture of Markov
    chains, from sequences ordered by their share of G and C on."""
    rich = ((codes == 2) | (codes == 3)).float().mean(1)
    place = rich.argsort(stable=True).argsort() * parts // len(codes)
    belongs = F.one_hot(place, parts).double()
    deep = at.known & (at.depth >= ROUGH)
    index = (at.words % 4**ROUGH * 4 + at.letter) * deep
    for _ in range(ROUNDS if parts > 1 else 0):
        counts = _levels(_words(at, belongs))[ROUGH]  # (M, 4**ROUGH, 4)
        share = _mixed(counts, torch.tensor(0.25).double(), 4.0).log().flatten(1)
        log = torch.stack([(one[index] * deep).sum(1) for one in share], 1)
        belongs = (log + belongs.mean(0).clamp(min=1e-9).log()).softmax(1)
    return belongs
