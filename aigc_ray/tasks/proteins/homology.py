"""Which chains are relatives, so that no protein is trained on and tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import gemmi
import numpy as np

IDENTITY = 0.3  # of the aligned residues, at least
ALIGNED, COVERED = 40, 0.6  # aligned residues: so many, and this share of the shorter chain
# Of the alignment by BLOSUM62: of 280 chains, half of them shuffled, no unrelated pair had more
# than 40, and no related one that was found less than 91 (measured).
SCORE = 50
WORD = 3  # letters; at 30 % identity two words in a row are rare, and longer ones nearly absent
NEAR = 40  # residues between two words, at most, as in BLAST
MOST = 1000  # places of one word that are looked at, those of the first chains

_SCORING = gemmi.AlignmentScoring("b")
_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_CODES = np.full(256, -1, np.int64)
_CODES[np.frombuffer(_LETTERS.encode(), np.uint8)] = np.arange(len(_LETTERS))


def clusters(sequences: Sequence[str], entries: Sequence[str]) -> list[int]:
    """The group of each chain, numbered from 0 in the order of the chains.

    Two chains are in one group if they are of one entry, or if at least 30 % of their aligned
    residues are equal, where 40 or more are aligned, these are 60 % of the shorter chain, and the
    score is none that chance gives; and so are all that such pairs join. An empty sequence is like
    no other. Only pairs are aligned that share two words of three letters, without overlap, on one
    diagonal of the alignment (BLAST's two hits), so unrelated chains cost little.

    Its limits: near 30 % some pairs share no two such words and are missed, as is a domain that two
    long chains share while the rest of them differs; a word that stands in more than 1000 places is
    looked for in the first of them only. Relatives with less identity, such as remote members of a
    superfamily, can still lie in different groups: identity does not tell them from chance, and
    only a classification of folds would.
    """
    group = _Groups(len(sequences))
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        group.join(first.setdefault(entry, number), number)
    unique: dict[str, int] = {}
    for number, sequence in enumerate(sequences):
        if sequence:
            group.join(unique.setdefault(sequence, number), number)
    texts = list(unique)
    for one, other in _candidates(texts):
        a, b = unique[texts[one]], unique[texts[other]]
        if group.of(a) != group.of(b) and related(texts[one], texts[other]):
            group.join(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group.of(number), len(numbers)) for number in range(len(sequences))]


def related(one: str, other: str) -> bool:
    """Whether the best alignment by BLOSUM62 has enough equal residues, and is not by chance."""
    found = gemmi.align_string_sequences(_names(one), _names(other), [], _SCORING)
    inner = found.match_string.strip()
    aligned = len(inner) - inner.count(" ")
    enough = max(ALIGNED, COVERED * min(len(one), len(other)))
    if aligned < enough or found.match_count < IDENTITY * aligned:
        return False
    # A short chain finds its letters somewhere in a long one, at the price of many gaps. Gaps at
    # the ends cost nothing here.
    ends = found.match_string.partition(inner)[::2]
    free = sum(_SCORING.gapo + _SCORING.gape * len(end) for end in ends if end)
    return found.score - free >= SCORE


@lru_cache(maxsize=4096)
def _names(sequence: str) -> list[str]:
    return gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)


class _Groups:
    """Union-find: the root of a group is its lowest number."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def of(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.of(one), self.of(other)))
        self.parent[high] = low


def _words(sequence: str) -> np.ndarray:
    """(n,) numbers of the words that begin at each residue; -1 with a letter that is none of 20."""
    codes = _CODES[np.frombuffer(sequence.encode("latin-1", "replace"), np.uint8)]
    if len(codes) < WORD:
        return np.empty(0, np.int64)
    parts = np.lib.stride_tricks.sliding_window_view(codes, WORD)
    number = parts @ len(_LETTERS) ** np.arange(WORD)
    return np.where((parts < 0).any(1), -1, number)


def _candidates(sequences: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs (one, other), one < other, that share two words on a diagonal."""
    words = [_words(sequence) for sequence in sequences]
    chain = np.repeat(np.arange(len(words)), [len(one) for one in words])
    place = np.concatenate([np.empty(0, np.int64), *(np.arange(len(one)) for one in words)])
    every = np.concatenate([np.empty(0, np.int64), *words])
    order = np.argsort(every, kind="stable")  # of one word, the first chains first
    starts = np.searchsorted(every[order], np.arange(len(_LETTERS) ** WORD))
    longest = max(map(len, words), default=0)
    seen = np.zeros(len(starts), np.int64)  # how often a word stands in the chains before
    for other, found in enumerate(words):
        known = np.flatnonzero(found >= 0)
        count = np.minimum(seen[found[known]], MOST)
        # Every earlier place of every word of this chain: a range of `order` each.
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        hit = order[np.repeat(starts[found[known]], count) + offset]
        here = np.repeat(known, count)
        diagonal = chain[hit] * 2 * longest + place[hit] - here + longest
        by = np.lexsort((here, diagonal))
        diagonal, here = diagonal[by], here[by]
        near: set[int] = set()
        for further in range(1, WORD + 1):  # of words that overlap, the third is the next one
            distance = here[further:] - here[:-further]
            twice = (distance >= WORD) & (distance <= NEAR)
            twice &= diagonal[further:] == diagonal[:-further]
            near.update((diagonal[further:][twice] // (2 * longest)).tolist())
        yield from ((one, other) for one in sorted(near))
        np.add.at(seen, found[known], 1)
