"""Which split a row goes to, so that no patient and no image lies in two of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

SPLITS = ("test", "val", "train")  # the first keeps a patient or a duplicate
SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))  # of rows whose split is not given


class Splitter:
    """Says which split a row goes to, and keeps patients and duplicates from crossing splits."""

    def __init__(self, seed: int, *, unique: bool = False) -> None:
        self.seed, self.unique = seed, unique
        self.contents: dict[int, str] = {}
        self.patients: dict[int, str] = {}
        self.torn: set[int] = set()  # patients that the source has in several splits
        self.patient_rows: Counter[str] = Counter()  # "train/test": left out of train, kept in test
        self.across: Counter[str] = Counter()
        self.within: Counter[str] = Counter()

    def place(self, split: str | None, patient: str | None, content: int) -> str | None:
        """The split, or None for a row that is left out.

        A row without a split joins its patient, or without one its double; so doubles whose
        patients lie in different splits are the only ones of these that are left out.
        """
        key = hash64(f"patient/{patient}")
        owner = self.patients.get(key) if patient else None
        if split is None and patient:
            split = owner or self._drawn(f"patient/{patient}")
        elif split is None:
            split = self.contents.get(content) or self._drawn(f"content/{content}")
        elif owner not in (None, split):
            self.torn.add(key)
            self.patient_rows[f"{split}/{owner}"] += 1
            return None
        twin = self.contents.get(content)
        if twin not in (None, split):
            self.across[f"{split}/{twin}"] += 1
            return None
        self.within[split] += twin is not None
        if self.unique and twin is not None:
            return None
        self.contents[content] = split
        if patient:
            self.patients[key] = split
        return split

    def _drawn(self, key: str) -> str:
        position = hash64(f"{self.seed}/{key}") / 2**64
        for split, share in SHARES:
            position -= share
            if position < 0:
                return split
        return SHARES[-1][0]


def named(patients: Iterable[str | None], numbers: Iterable[int]) -> list[str]:
    """Who the rows with these numbers are of; a row of nobody's is its own."""
    return [name or f"row/{number}" for number, name in zip(numbers, patients, strict=True)]


def halves(names: Iterable[str]) -> np.ndarray:
    """(N,) bool: about one half of a split, all rows of a patient on one side, always the same.

    Of the validation split the True half chooses (a moment, a setting, whose opinion is heard),
    and the other, which has seen no choice, says what may be promised.
    """
    return np.array([hash64(f"half/{name}") % 2 == 0 for name in names], bool)


def hash64(text: str) -> int:
    """A number that stands for a text, such as who somebody is, without holding it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
