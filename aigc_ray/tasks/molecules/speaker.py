"""Samples of a generator that are molecules, as they are said, and what they may begin with.

Samples are made in chunks, the first of them small so that the first molecule is there at once, in
a thread of its own: a network computes while RDKit reads what it said before. Which samples there
are depends on the request alone. Nothing that is held grows with the number asked for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from aigc_ray import noise
from aigc_ray.bloom import Bloom
from aigc_ray.errors import UserError
from aigc_ray.task import Networks
from aigc_ray.tasks.molecules import alphabet, chemistry, data, growing
from aigc_ray.tasks.molecules.chemistry import PROPERTIES
from aigc_ray.tasks.molecules.networks import Critic, Generator
from aigc_ray.tasks.molecules.wishes import Scaffold, Wanted

FIRST, LARGEST = 32, 1024  # samples in the first chunk, and in the largest
TIMES, AGAIN = 4, 1 << 40  # that a wish is told, at most; from one time to the next numbers rise so
NEAR = 256  # likely combinations of properties that are nearest to the targets
SEEN_BYTES = 16 << 20  # that tell which molecules there were: ten bits each of 13 million


class Candidate(NamedTuple):
    """A molecule that was said."""

    molecule: Chem.Mol
    smiles: str
    number: int  # of the sample
    logit: float | None  # of the critic; None without one


# Numbers of samples and what they are told (B, P) -> how to read each as a molecule, if it is one.
Reading = Callable[[], Chem.Mol | None]
Plan = Callable[[np.ndarray, Tensor], list[Reading]]


class Speaker:
    """A model's networks, with which samples are made.

    Args:
        networks: of the model's first member.
        length: codes of a sample, at most.
    """

    def __init__(self, networks: Networks, length: int) -> None:
        generator = networks["generator"]
        assert isinstance(generator, Generator)
        self.generator, self.length = generator, length
        critic = networks["critic"] if "critic" in networks else None  # noqa: SIM401
        assert critic is None or isinstance(critic, Critic)
        self.critic = critic
        self.prior = generator.prior.numpy(force=True)
        self.scale = generator.scale.numpy(force=True)

    def wishes(self, wanted: Wanted, numbers: np.ndarray) -> Tensor:
        """(B, P) properties that samples are told, likely ones that fit the targets; NaN where
        nothing is told of them."""
        keys = noise.keys(wanted.seed, torch.from_numpy(numbers))
        chance = noise.uniform(keys, "wish", (1,))[:, 0].numpy()
        parts = wanted.fragments or ([wanted.scaffold] if wanted.scaffold else [])
        distance = np.zeros(len(self.prior))
        bounds = {}
        for place, name in enumerate(PROPERTIES):
            target = wanted.targets.get(name)
            low, high = (-np.inf, np.inf) if target is None else target[:2]
            if target is not None and target.aim is not None:
                low = high = target.aim
            elif target is None and name == "mw" and parts:
                low = sum(chemistry.weight(part.molecule) for part in parts)  # and what is added
            if low == -np.inf and high == np.inf:
                continue
            bounds[place] = low, high
            column = self.prior[:, place]
            distance += np.square((column - np.clip(column, low, high)) / self.scale[place])
        if not bounds:
            return torch.full((len(numbers), len(PROPERTIES)), torch.nan)
        near = np.argpartition(distance, NEAR)[:NEAR]
        near = near[np.argsort(distance[near], kind="stable")]
        rows = self.prior[near[(chance * len(near)).astype(int)]].copy()
        for place, (low, high) in bounds.items():
            rows[:, place] = np.clip(rows[:, place], low, high)
        return torch.from_numpy(rows)

    @torch.inference_mode()
    def codes(
        self, wanted: Wanted, numbers: np.ndarray, wish: Tensor, prompts: Sequence[str] | None
    ) -> Tensor:
        """(B, L) codes of samples."""
        keys = noise.keys(wanted.seed, torch.from_numpy(numbers))
        told = wish.isfinite()
        rooted = torch.full((len(wish),), float(prompts is not None))
        begun = None
        if prompts is not None:
            begun = torch.from_numpy(
                alphabet.rows([alphabet.encode(text) for text in prompts], self.length)
            ).long()
            begun = begun[:, : int((begun > 0).sum(1).max())]
        # All rows hear the same where nothing is told, and there is nothing to move away from.
        rows = len(wish) if told.any() else 1
        heard = self.generator.hear(wish[:rows], told[:rows], rooted[:rows])
        unheard = None
        if wanted.guidance and told.any():
            unheard = self.generator.hear(wish, torch.zeros_like(told), rooted)
        return self.generator.say(
            heard,
            noise.uniform(keys, "codes", (self.length,)),
            prompt=begun,
            temperature=wanted.temperature,
            unheard=unheard,
            guidance=wanted.guidance,
        )

    def fits(self, text: str) -> bool:
        """Whether a sample can begin with this SMILES."""
        try:
            return len(alphabet.encode(text)) < self.length - 1
        except UserError:
            return False

    def continued(
        self, wanted: Wanted, numbers: np.ndarray, wish: Tensor, texts: Sequence[str | None]
    ) -> list[str | None]:
        """SMILES that begin with `texts`; None where that is None."""
        there = [place for place, text in enumerate(texts) if text is not None]
        said: list[str | None] = [None] * len(texts)
        if there:
            begun = [text for text in texts if text is not None]
            codes = self.codes(wanted, numbers[there], wish[there], begun)
            for place, text in zip(there, data.smiles_of(codes), strict=True):
                said[place] = text
        return said

    @torch.inference_mode()
    def judged(self, smiles: Sequence[str], wish: Tensor) -> Tensor:
        """(B,) logits of the critic."""
        assert self.critic is not None
        seen = self.critic.read(data.codes_of(smiles, self.length))
        told = wish.isfinite()
        standard = ((wish - self.generator.mean) / self.generator.scale).clamp(-5, 5)
        return self.critic.judge(seen, torch.where(told, standard, 0.0), told)


def candidates(
    speaker: Speaker,
    wanted: Wanted,
    plan: Plan,
    most: int,
    failed: Counter[str],
    times: int = TIMES,
) -> Iterator[Candidate]:
    """Molecules, each once, in the order of their samples; why the others are none, in `failed`.

    Args:
        most: samples, at most.
        times: that a wish is told until there is a molecule, at most: else those that are hard to
            say would be rare. Where nothing is told one sample is like another.
    """
    times = times if wanted.targets else 1
    seen = Bloom(np.zeros(SEEN_BYTES, np.uint8))
    with ThreadPoolExecutor(1, "speaker") as ahead:
        chunks = _chunks(most)
        waiting = ahead.submit(_said, speaker, wanted, plan, next(chunks))
        while True:
            said = waiting.result()
            following = next(chunks, None)
            if following is not None:
                waiting = ahead.submit(_said, speaker, wanted, plan, following)
            read = _read(said, failed)
            for turn in range(1, times):  # while the next chunk is being said
                left = np.setdiff1d(said.numbers, [one.candidate.number for one in read])
                if not len(left):
                    break
                wish = said.wish[np.searchsorted(said.numbers, left)]
                readings = plan(left + turn * AGAIN, wish)
                read += _read(_Said(left, readings, wish), failed)
            read.sort(key=lambda one: one.candidate.number)
            yield from _passed(speaker, wanted, read, seen, failed)
            if following is None:
                return


def _chunks(most: int) -> Iterator[np.ndarray]:
    start, size = 0, FIRST
    while start < most:
        yield np.arange(start, min(start + size, most))
        start, size = start + size, min(2 * size, LARGEST)


class _Said(NamedTuple):
    numbers: np.ndarray
    readings: list[Reading]
    wish: Tensor  # (B, P)


class _Read(NamedTuple):
    candidate: Candidate
    wish: Tensor  # (P,)


def _said(speaker: Speaker, wanted: Wanted, plan: Plan, numbers: np.ndarray) -> _Said:
    wish = speaker.wishes(wanted, numbers)
    return _Said(numbers, plan(numbers, wish), wish)


def _read(said: _Said, failed: Counter[str]) -> list[_Read]:
    found = []
    with chemistry.quiet():
        for place, reading in enumerate(said.readings):
            molecule = reading()
            if molecule is None:
                failed["were no molecule"] += 1
                continue
            smiles = chemistry.smiles(molecule)
            number = int(said.numbers[place])
            one = Candidate(molecule, smiles, number, None)
            found.append(_Read(one, said.wish[place]))
    return found


def _passed(
    speaker: Speaker, wanted: Wanted, read: list[_Read], seen: Bloom, failed: Counter[str]
) -> Iterator[Candidate]:
    """Those that were not there before, and that the critic lets pass: each with the odds that it
    gives it of being real, by its gate's (after Azadi et al. 2019, "Discriminator rejection
    sampling")."""
    if not read:
        return
    texts = [one.candidate.smiles for one in read]
    old = seen.holds(texts)
    fresh, already = [], set[str]()
    for one, was in zip(read, old, strict=True):
        if was or one.candidate.smiles in already:
            failed["were there already"] += 1
            continue
        already.add(one.candidate.smiles)
        fresh.append(one)
    seen.add(already)
    if speaker.critic is None or not wanted.critic or not fresh:
        yield from (one.candidate for one in fresh)
        return
    kept = []
    for one in fresh:
        try:
            fits = len(alphabet.encode(one.candidate.smiles)) < speaker.length
        except UserError:
            fits = False
        if fits:
            kept.append(one)
        else:
            failed["were too long, or of strange atoms"] += 1
    if not kept:
        return
    texts = [one.candidate.smiles for one in kept]
    logits = speaker.judged(texts, torch.stack([one.wish for one in kept]))
    numbers = torch.tensor([one.candidate.number for one in kept])
    chance = noise.uniform(noise.keys(wanted.seed, numbers), "gate", (1,))[:, 0]
    passes = chance < torch.exp(logits - speaker.critic.running_gate)
    for one, logit, through in zip(kept, logits.tolist(), passes.tolist(), strict=True):
        if through:
            yield one.candidate._replace(logit=logit)
        else:
            failed["did not look real to the critic"] += 1


# --- what samples begin with ------------------------------------------------------------------


def plain(speaker: Speaker, wanted: Wanted) -> Plan:
    """Samples that begin with nothing."""

    def plan(numbers: np.ndarray, wish: Tensor) -> list[Reading]:
        texts = data.smiles_of(speaker.codes(wanted, numbers, wish, None))
        return [partial(chemistry.parsed, text) for text in texts]

    return plan


def decorated(speaker: Speaker, wanted: Wanted, scaffold: Scaffold) -> Plan:
    """Samples that hold a scaffold. At one of its points after another something is attached."""

    def plan(numbers: np.ndarray, wish: Tensor) -> list[Reading]:
        everything = tuple(range(scaffold.molecule.GetNumAtoms()))
        whole = Scaffold(scaffold.molecule, everything)  # its `points` tell where each atom is
        readings: list[Callable[[], Scaffold | None]] = [lambda: whole] * len(numbers)
        for turn in range(len(scaffold.points)):
            with chemistry.quiet():
                parts = [reading() for reading in readings]
            turned = wanted._replace(seed=wanted.seed + turn)
            readings = _attached(speaker, turned, numbers, wish, parts, scaffold, turn)
        return [partial(_molecule_of, reading) for reading in readings]

    return plan


def _attached(
    speaker: Speaker,
    wanted: Wanted,
    numbers: np.ndarray,
    wish: Tensor,
    parts: Sequence[Scaffold | None],
    scaffold: Scaffold,
    turn: int,
) -> list[Callable[[], Scaffold | None]]:
    """What is said at one point of a scaffold, as it has become by now."""
    point = scaffold.points[turn]
    starts: list[growing.Begun | None] = []
    for number, part in zip(numbers.tolist(), parts, strict=True):
        seed = wanted.seed * 1_000_003 + number
        begun = None
        if part is not None:
            begun = growing.begun(part.molecule, part.points[point], seed)
        starts.append(begun if begun and speaker.fits(begun.text) else None)
    said = speaker.continued(wanted, numbers, wish, [s and s.text for s in starts])
    return [
        partial(_grown, part, start, point, text)
        for part, start, text in zip(parts, starts, said, strict=True)
    ]


def _grown(
    part: Scaffold | None, start: growing.Begun | None, point: int, text: str | None
) -> Scaffold | None:
    """The scaffold with what was said; its `points` say where each of its atoms is now."""
    if part is None or start is None or text is None:
        return None
    grown = growing.grown(start, part.molecule, part.points[point], text)
    if grown is None:
        return None
    return Scaffold(grown.molecule, tuple(grown.points[place] for place in part.points))


def _molecule_of(reading: Callable[[], Scaffold | None]) -> Chem.Mol | None:
    found = reading()
    return None if found is None else found.molecule


def linked(speaker: Speaker, wanted: Wanted, first: Scaffold, second: Scaffold) -> Plan:
    """Samples that hold two fragments with something between them."""
    (near,), (far,) = first.points, second.points
    end = growing.written_from(second.molecule, far)

    def plan(numbers: np.ndarray, wish: Tensor) -> list[Reading]:
        starts = []
        for number in numbers.tolist():
            begun = growing.begun(first.molecule, near, wanted.seed * 1_000_003 + number)
            starts.append(begun if begun and speaker.fits(begun.text) else None)
        said = speaker.continued(wanted, numbers, wish, [s and s.text for s in starts])
        return [
            partial(_linked, first, second, start, end, text, int(number))
            for start, text, number in zip(starts, said, numbers, strict=True)
        ]

    return plan


def _linked(
    first: Scaffold,
    second: Scaffold,
    start: growing.Begun | None,
    end: str,
    text: str | None,
    seed: int,
) -> Chem.Mol | None:
    if start is None or text is None:
        return None
    whole = growing.linked(start, end, text.removeprefix(start.text), seed)
    if whole is None:
        return None
    grown = growing.grown(start, first.molecule, first.points[0], whole)
    if grown is None or not growing.ends_with(grown.molecule, second):
        return None
    return grown.molecule


def changed(speaker: Speaker, wanted: Wanted, parents: Sequence[Chem.Mol]) -> Plan:
    """Samples that begin as one of these molecules, written from any of its atoms, and go on as
    the generator will."""

    def plan(numbers: np.ndarray, wish: Tensor) -> list[Reading]:
        begun: list[str | None] = []
        for number in numbers.tolist():
            chance = random.Random(wanted.seed * 1_000_003 + number)
            parent = parents[chance.randrange(len(parents))]
            root = chance.randrange(parent.GetNumAtoms())
            tokens = alphabet.tokens(Chem.MolToSmiles(parent, rootedAtAtom=root, canonical=False))
            text = "".join(tokens[: max(1, int(len(tokens) * chance.uniform(0.2, 0.9)))])
            begun.append(text if speaker.fits(text) else None)
        said = speaker.continued(wanted, numbers, wish, begun)
        return [partial(_parsed, text) for text in said]

    return plan


def _parsed(text: str | None) -> Chem.Mol | None:
    return None if text is None else chemistry.parsed(text)
