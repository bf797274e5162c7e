"""From a request to molecules: said by the generator, let pass by the critic, checked, told.

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
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rdkit import Chem
from rdkit.SimDivFilters import rdSimDivPickers
from torch import Tensor

from aigc_ray import noise
from aigc_ray.bloom import Bloom
from aigc_ray.errors import UserError
from aigc_ray.task import Item, Networks, Shortfall
from aigc_ray.tasks.molecules import alphabet, chemistry, data, growing
from aigc_ray.tasks.molecules.chemistry import PROPERTIES
from aigc_ray.tasks.molecules.networks import Critic, Generator, Memory
from aigc_ray.tasks.molecules.wishes import Scaffold, Wanted

FIRST, LARGEST = 32, 1024  # samples in the first chunk, and in the largest
TRIES, EACH = 4_000, 40  # samples that a request may cost: so many, and for each molecule
TIMES, AGAIN = 4, 1 << 40  # that a wish is told, at most; from one time to the next numbers rise so
NEAR = 256  # likely combinations of properties that are nearest to the targets
SEEN_BYTES = 16 << 20  # that tell which molecules there were: ten bits each of 13 million
POOL = 5  # candidates for each molecule of a diverse set
KEPT = 0.1  # share of a round's molecules that the next one changes
OPTIMISED = 256  # molecules in a round of optimisation


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
        """(B, P) properties that samples are told, likely ones that fit the targets."""
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
        near = np.arange(len(distance))
        if bounds:
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
        told = torch.ones_like(wish, dtype=torch.bool)
        rooted = torch.full((len(wish),), float(prompts is not None))
        begun = None
        if prompts is not None:
            begun = torch.from_numpy(
                alphabet.rows([alphabet.encode(text) for text in prompts], self.length)
            ).long()
            begun = begun[:, : int((begun > 0).sum(1).max())]
        unheard = self.generator.hear(wish, ~told, rooted) if wanted.guidance else None
        return self.generator.say(
            self.generator.hear(wish, told, rooted),
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
        standard = (wish - self.generator.mean) / self.generator.scale
        told = torch.ones_like(wish, dtype=torch.bool)
        return self.critic.judge(seen, standard.clamp(-5, 5), told)


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
            say would be rare.
    """
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


# --- what is asked of molecules ---------------------------------------------------------------


class Answers(Protocol):
    """A trained recogniser's activities of molecules: by name, `value` and `spread`."""

    def __call__(self, molecules: Sequence[Chem.Mol]) -> list[dict[str, Any]]: ...


class Judge:
    """Whether molecules are what a request asks for, and the evidence that goes with them.

    Args:
        memory: of the training molecules.
        answers: of the recogniser, where there is one.
    """

    def __init__(self, wanted: Wanted, memory: Memory, answers: Answers | None) -> None:
        self.wanted, self.said = wanted, answers
        self.known = Bloom(memory.known.numpy(force=True))
        there = (memory.fingerprints > 0).any(1)
        self.fingerprints = memory.fingerprints[there].numpy(force=True)
        self.codes = memory.codes[there].tolist()
        similar = wanted.similar_to
        self.like = None if similar is None else chemistry.fingerprint(similar)

    def fault(self, candidate: Candidate) -> str | None:
        """Why a molecule is not what was asked for, in words that fit behind their number."""
        wanted, molecule = self.wanted, candidate.molecule
        if not all(molecule.HasSubstructMatch(pattern) for pattern in wanted.must_have):
            return "lacked a pattern of must_have"
        if any(molecule.HasSubstructMatch(pattern) for pattern in wanted.must_not_have):
            return "had a pattern of must_not_have"
        if wanted.novel and self.known.holds([candidate.smiles])[0]:
            return "were training molecules"
        if self.like is not None:
            alike = chemistry.similarity(self.like, chemistry.fingerprint(molecule)[None])[0]
            if not wanted.similarity[0] <= alike <= wanted.similarity[1]:
                return "were not as similar to similar_to as asked"
        for name in wanted.targets:
            if name in PROPERTIES and not self._meets(name, chemistry.property_of(molecule, name)):
                return f"missed the target of {name}"
        for name in wanted.filters:
            if not chemistry.passes(molecule, (name,)):
                return f"had an alert of {name}"
        named = [name for name in wanted.targets if name not in PROPERTIES]
        if named and self.said is not None:
            (said,) = self.said([molecule])
            for name in named:
                if not self._meets(name, said[name]["value"]):
                    return f"missed the target of {name}"
        return None

    def _meets(self, name: str, value: float) -> bool:
        target = self.wanted.targets[name]
        return target.low - 1e-9 <= value <= target.high + 1e-9

    def score(self, candidate: Candidate) -> float:
        """How good a molecule is in the eyes of `optimise` or of the caller's own function."""
        wanted = self.wanted
        if wanted.score is not None:
            try:
                return float(wanted.score(candidate.smiles))
            except Exception as fault:
                raise UserError(
                    f"score raised {type(fault).__name__} for {candidate.smiles}: {fault}"
                ) from fault
        assert wanted.optimise is not None
        name = wanted.optimise.lstrip("-")
        if name in PROPERTIES:
            value = chemistry.property_of(candidate.molecule, name)
        else:
            assert self.said is not None, "a request is checked against the model's activities"
            value = self.said([candidate.molecule])[0][name]["value"]
        return -value if wanted.optimise.startswith("-") else value

    def item(self, candidate: Candidate) -> Item:
        """A molecule with its evidence."""
        wanted, molecule = self.wanted, candidate.molecule
        item: Item = {"seed": wanted.seed, "number": candidate.number, "smiles": candidate.smiles}
        if wanted.evidence:
            found = chemistry.properties(molecule)
            item |= {
                "inchi_key": chemistry.inchi_key(molecule),
                "properties": {name: round(value, 4) for name, value in found.items()},
                "targets": {
                    name: {
                        "wished": [target.low, target.high] if target.aim is None else target.aim,
                        "obtained": round(found[name], 4),
                    }
                    for name, target in wanted.targets.items()
                    if name in found
                },
                "alerts": chemistry.alerts(molecule),
                "in_training": bool(self.known.holds([candidate.smiles])[0]),
                "nearest": self._nearest(molecule),
            }
            if candidate.logit is not None:
                item["critic"] = round(1 / (1 + float(np.exp(-candidate.logit))), 4)
            if self.said is not None:
                (item["activities"],) = self.said([molecule])
        if wanted.svg:
            item["svg"] = chemistry.svg(molecule)
        if wanted.molblock:
            item["molblock"] = chemistry.block(molecule)
        return item

    def _nearest(self, molecule: Chem.Mol) -> dict[str, Any] | None:
        """The most similar of the training molecules that the model keeps."""
        if not len(self.fingerprints):
            return None
        alike = chemistry.similarity(chemistry.fingerprint(molecule), self.fingerprints)
        place = int(alike.argmax())
        smiles = alphabet.decode(self.codes[place])
        return {"smiles": smiles or None, "similarity": round(float(alike[place]), 4)}


def generate(
    networks: Networks, length: int, wanted: Wanted, answers: Answers | None = None
) -> Iterator[Item | Shortfall]:
    """As many molecules as were asked for, as they are found, or the reason why there are fewer."""
    speaker = Speaker(networks, length)
    memory = networks["memory"]
    assert isinstance(memory, Memory)
    judge = Judge(wanted, memory, answers)
    failed: Counter[str] = Counter()
    found = 0
    for candidate in _chosen(speaker, wanted, judge, failed):
        yield judge.item(candidate)
        found += 1
        if found == wanted.n:
            return
    tried = failed.total() + found
    yield Shortfall(wanted.n - found, f"of {tried} samples {chemistry.listed(failed)}")


def _chosen(
    speaker: Speaker, wanted: Wanted, judge: Judge, failed: Counter[str]
) -> Iterator[Candidate]:
    plan, times = plain(speaker, wanted), TIMES
    if wanted.scaffold is not None:
        plan, times = decorated(speaker, wanted, wanted.scaffold), 1
    elif wanted.fragments is not None:
        plan, times = linked(speaker, wanted, *wanted.fragments), 1
    if wanted.optimise is not None or wanted.score is not None:
        return iter(_optimised(speaker, wanted, judge, plan, failed))
    every = candidates(speaker, wanted, plan, TRIES + EACH * wanted.n, failed, times)
    right = _right(every, judge, failed)
    return iter(_diverse(right, wanted)) if wanted.diverse else right


def _right(every: Iterator[Candidate], judge: Judge, failed: Counter[str]) -> Iterator[Candidate]:
    for candidate in every:
        fault = judge.fault(candidate)
        if fault is None:
            yield candidate
        else:
            failed[fault] += 1


def _diverse(right: Iterator[Candidate], wanted: Wanted) -> list[Candidate]:
    """Of the first few times as many those that are farthest from each other (MaxMin; Ashton et
    al. 2002)."""
    pool = list(islice(right, POOL * wanted.n))
    if len(pool) <= wanted.n:
        return pool
    bits = np.stack([chemistry.fingerprint(one.molecule) for one in pool])

    def distance(one: int, other: int) -> float:
        return 1.0 - float(chemistry.similarity(bits[one], bits[other][None])[0])

    picker = rdSimDivPickers.MaxMinPicker()
    seed = wanted.seed % (1 << 31)
    return [pool[place] for place in picker.LazyPick(distance, len(pool), wanted.n, seed=seed)]


# --- optimisation -----------------------------------------------------------------------------


def _optimised(
    speaker: Speaker, wanted: Wanted, judge: Judge, plan: Plan, failed: Counter[str]
) -> list[Candidate]:
    """The best of some rounds, each of which changes the best before: a genetic algorithm whose
    mutations the generator says (after Jensen 2019; with prompts for operators)."""
    size = max(OPTIMISED, 2 * wanted.n)
    best: dict[str, tuple[float, Candidate]] = {}
    for turn in range(wanted.rounds):
        asked = wanted._replace(seed=wanted.seed + turn)
        parents = [one.molecule for _, one in _ranked(best)[: max(2, int(KEPT * size))]]
        if turn and parents and wanted.scaffold is None and wanted.fragments is None:
            plan = changed(speaker, asked, parents)
        every = candidates(speaker, asked, plan, TRIES + size, failed, times=1)
        for candidate in islice(_right(every, judge, failed), size):
            if candidate.smiles not in best:
                best[candidate.smiles] = judge.score(candidate), candidate
    return [candidate for _, candidate in _ranked(best)[: wanted.n]]


def _ranked(best: dict[str, tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    return sorted(best.values(), key=lambda pair: (-pair[0], pair[1].smiles))


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
