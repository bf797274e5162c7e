"""What is asked of generated sequences, and which candidates are what was asked for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aigc_ray import noise
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.task import Batch, Item, Shortfall, whole
from aigc_ray.tasks.dna import data
from aigc_ray.tasks.dna.data import IUPAC, LABEL, SEQUENCE

MOST = 10_000  # sequences of one request
ROUND = 64  # candidates that are made at a time
TRIES = 50  # candidates for each sequence that is wanted, at most
FRUITLESS = 2_000  # candidates without one that is right, after which no more is tried
MOST_PATTERNS = 20
# Recognition sites of enzymes that cloning avoids (REBASE, rebase.neb.com).
ENZYMES = {"EcoRI": "GAATTC", "BamHI": "GGATCC", "HindIII": "AAGCTT", "NotI": "GCGGCCGC",
           "XhoI": "CTCGAG", "XbaI": "TCTAGA", "SalI": "GTCGAC", "NdeI": "CATATG",
           "NheI": "GCTAGC", "KpnI": "GGTACC", "SacI": "GAGCTC", "PstI": "CTGCAG",
           "BsaI": "GGTCTC", "BbsI": "GAAGAC", "BsmBI": "CGTCTC", "SapI": "GCTCTTC"}  # fmt: skip
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")
KEYS = ("n", "seed", "class", "motifs", "fixed", "gc", "forbidden", "sure")


class Motif(NamedTuple):
    """Letters that have to stand somewhere, or at a position from 0 on."""

    letters: str
    position: int | None


class Wanted(NamedTuple):
    """A request for sequences, checked."""

    n: int
    seed: int
    label: int | None
    motifs: tuple[Motif, ...]
    fixed: str  # L letters, N where nothing is asked
    gc: tuple[float, float]
    forbidden: tuple[tuple[str, re.Pattern[str]], ...]
    sure: float


def wanted(request: Mapping[str, Any], length: int, classes: tuple[str, ...]) -> Wanted:
    """What a request asks for.

    Raises:
        UserError: it cannot be read, or contradicts itself.
    """
    unknown = sorted(set(request) - set(KEYS))
    if unknown:
        raise UserError(f"generate takes {', '.join(KEYS)}; got {', '.join(unknown)}")
    name = request.get("class")
    if name is not None and name not in classes:
        raise UserError(f"class is one of {', '.join(classes)}; got {name!r}")
    fixed = _letters(request.get("fixed", "N" * length), "fixed")
    if len(fixed) != length:
        raise UserError(f"fixed has {length} letters, N where any may stand; got {len(fixed)}")
    return Wanted(
        n=whole(request, "n", 1, 1, MOST),
        seed=whole(request, "seed", 0, 0, 2**63),
        label=None if name is None else classes.index(name),
        motifs=tuple(_motif(one, length, fixed) for one in _list(request, "motifs")),
        fixed=fixed,
        gc=_range(request.get("gc", [0, 1])),
        forbidden=tuple(_site(one) for one in _list(request, "forbidden")),
        sure=_share(request.get("sure", 0.5)),
    )


def _list(request: Mapping[str, Any], key: str) -> list[Any]:
    given = request.get(key, [])
    if isinstance(given, str):  # as on a command line
        given = [word for word in given.split(",") if word]
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list) or len(given) > MOST_PATTERNS:
        raise UserError(f"{key} is a list of at most {MOST_PATTERNS} patterns; got {given!r}")
    return given


def _letters(given: Any, key: str) -> str:
    text = given.upper().replace(".", "N") if isinstance(given, str) else ""
    strange = next((letter for letter in text if letter not in IUPAC), None)
    if not text or strange:
        got = f"the letter {strange!r}" if strange else repr(given)
        raise UserError(f"{key} holds letters of DNA, such as A, C, G, T, W and N; got {got}")
    return text


def _motif(given: Any, length: int, fixed: str) -> Motif:
    position = None
    if isinstance(given, Mapping):
        if set(given) - {"motif", "position"}:
            raise UserError('motifs holds letters, or objects with "motif" and "position"')
        given, position = given.get("motif"), given.get("position")
    elif isinstance(given, str) and "@" in given:
        given, _, place = given.partition("@")
        position = int(place) if place.isdecimal() else place
    letters = _letters(given, "motifs")
    last = length - len(letters)
    if last < 0:
        raise UserError(f"motifs: {letters} is longer than the {length} letters of a sequence")
    if position is None:
        return Motif(letters, None)
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position <= last:
        raise UserError(
            f"motifs: {letters} stands at a position from 0 to {last}; got {position!r}"
        )
    for a, b in zip(letters, fixed[position:], strict=False):
        if not set(IUPAC[a]) & set(IUPAC[b]):
            raise UserError(f"motifs: {letters} at {position} contradicts what is fixed there")
    return Motif(letters, position)


def _site(given: Any) -> tuple[str, re.Pattern[str]]:
    """A pattern that may stand on neither strand."""
    named = {name.lower(): site for name, site in ENZYMES.items()}
    letters = named.get(str(given).lower()) or _letters(given, "forbidden")
    strands = {letters, letters.translate(_COMPLEMENT)[::-1]}
    return str(given), re.compile("|".join(pattern(one) for one in sorted(strands)))


def pattern(letters: str) -> str:
    """A regular expression of IUPAC's letters."""
    return "".join(f"[{IUPAC[letter]}]" for letter in letters)


def _range(given: Any) -> tuple[float, float]:
    ends = given.split(":") if isinstance(given, str) else given
    ends = ends if isinstance(ends, (list, tuple)) else ()
    numbers = [number for one in ends if (number := _number(one)) is not None]
    if len(ends) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise UserError(f"gc is a range of shares [low, high] from 0 to 1; got {given!r}")
    return numbers[0], numbers[1]


def _share(given: Any) -> float:
    number = _number(given)
    if number is None or not 0 <= number < 1:
        raise UserError(f"sure is at least 0 and below 1; got {given!r}")
    return number


def _number(given: Any) -> float | None:
    """A finite number, perhaps as text."""
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        return None
    try:
        number = float(given)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# --- candidates -------------------------------------------------------------------------------


def generate(model: Model, request: Mapping[str, Any]) -> Iterator[Item | Shortfall]:
    """Sequences as a request asks for them, each with what speaks for it."""
    classes = model.task.schema[LABEL].values
    length = model.task.schema[SEQUENCE].shape[0]
    yield from _items(model, wanted(request, length, classes), classes, length)


def _items(
    model: Model, asked: Wanted, classes: tuple[str, ...], length: int
) -> Iterator[Item | Shortfall]:
    missed: Counter[str] = Counter()
    seen: set[str] = set()
    made = tried = 0
    while tried < (TRIES * max(asked.n, ROUND // 8) if made else FRUITLESS):
        number = torch.arange(tried, tried + ROUND)
        tried += ROUND
        label = (
            number % len(classes) if asked.label is None else torch.full_like(number, asked.label)
        )
        codes = drawn(model, label, noise.keys(asked.seed, number), fixed(asked, number, length))
        likely = recognised(model, codes)
        for place in range(ROUND):
            text = data.text_of(codes[place])
            share = float(likely[place, label[place]])
            why = _why_not(text, share, asked)
            if why is None and text in seen:
                why = "had been made before"
            if why is not None:
                missed[why] += 1
                continue
            seen.add(text)
            made += 1
            name = classes[int(label[place])]
            yield {
                "seed": asked.seed,
                "number": int(number[place]),
                "class": name,
                "sequence": text,
                "gc": round(_gc(text), 4),
                "probability": round(share, 4),
                "motifs": [_found(motif, text) for motif in asked.motifs],
            }
            if made == asked.n:
                return
    reasons = ", ".join(f"{count} {why}" for why, count in missed.most_common())
    yield Shortfall(asked.n - made, f"of {tried} sequences that were made {reasons}")


def drawn(model: Model, label: Tensor, row: Tensor, fixed: Tensor | None) -> Tensor:
    """Codes (B, L) for classes (B,), with given codes (B, L) where they are not 0."""
    known = {LABEL: torch.ones_like(label, dtype=torch.bool)}
    value = {LABEL: label}
    if fixed is not None:
        value["fixed"] = fixed
    draw = model.draw(Batch(value, known, torch.ones(len(label)), row))
    return draw.value[SEQUENCE]


def recognised(model: Model, codes: Tensor) -> Tensor:
    """(B, K) what the model's own recogniser takes generated sequences for."""
    zero = torch.zeros(len(codes), dtype=torch.int64)
    known = {SEQUENCE: zero == 0, LABEL: zero != 0}
    batch = Batch({SEQUENCE: codes, LABEL: zero}, known, torch.ones(len(codes)), zero)
    return model.recognise(batch)["probability"]


def fixed(asked: Wanted, number: Tensor, length: int) -> Tensor | None:
    """(B, L) codes that are to stand in candidates, 0 elsewhere; of letters for several bases one
    is drawn, and of motifs without a position the place."""
    if not asked.motifs and not asked.fixed.strip("N"):
        return None
    found = torch.zeros(len(number), length, dtype=torch.int64)
    for row, one in enumerate(number.tolist()):
        random = np.random.default_rng([asked.seed % 2**32, one])
        letters = list(asked.fixed)
        for motif in asked.motifs:
            place = motif.position
            if place is None:
                place = _free(letters, motif.letters, random)
            for offset, letter in enumerate(motif.letters):
                both = [base for base in IUPAC[letter] if base in IUPAC[letters[place + offset]]]
                letters[place + offset] = str(random.choice(both)) if both else letter
        for place, letter in enumerate(letters):
            if letter != "N":
                base = letter if letter in data.LETTERS else str(random.choice(list(IUPAC[letter])))
                found[row, place] = data.LETTERS.index(base) + 1
    return found


def _free(letters: list[str], motif: str, random: np.random.Generator) -> int:
    """A place where the motif contradicts nothing, or any where there is none."""
    last = len(letters) - len(motif)
    free = [
        place
        for place in range(last + 1)
        if all(set(IUPAC[a]) & set(IUPAC[b]) for a, b in zip(motif, letters[place:], strict=False))
    ]
    return int(random.choice(free)) if free else int(random.integers(last + 1))


def _gc(text: str) -> float:
    return (text.count("G") + text.count("C")) / len(text)


def _found(motif: Motif, text: str) -> dict[str, Any]:
    start = motif.position
    if start is None:
        at = re.search(pattern(motif.letters), text)
        start = at.start() if at else -1
    return {"motif": motif.letters, "position": start}


def _why_not(text: str, share: float, asked: Wanted) -> str | None:
    """What is wrong with a candidate."""
    low, high = asked.gc
    if not low <= _gc(text) <= high:
        return "missed the range of gc"
    for motif in asked.motifs:
        start = motif.position
        place = slice(None) if start is None else slice(start, start + len(motif.letters))
        if not re.search(pattern(motif.letters), text[place]):
            return f"lacked {motif.letters}"
    if not re.fullmatch(pattern(asked.fixed), text):
        return "changed what is fixed"
    for name, site in asked.forbidden:
        if site.search(text):
            return f"held {name}"
    if share < asked.sure:
        return "looked like another class to the recogniser"
    return None
