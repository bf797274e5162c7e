"""From a request to molecules: those of what is said that are as asked for, with their evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from rdkit import Chem
from rdkit.SimDivFilters import rdSimDivPickers

from aigc_ray.bloom import Bloom
from aigc_ray.errors import UserError
from aigc_ray.task import Item, Networks, Shortfall
from aigc_ray.tasks.molecules import alphabet, chemistry
from aigc_ray.tasks.molecules.chemistry import PROPERTIES
from aigc_ray.tasks.molecules.networks import Memory, Recogniser
from aigc_ray.tasks.molecules.speaker import (
    TIMES,
    Candidate,
    Plan,
    Speaker,
    candidates,
    changed,
    decorated,
    linked,
    plain,
)
from aigc_ray.tasks.molecules.wishes import Wanted

TRIES, EACH = 4_000, 40  # wishes that a request may cost: so many, and for each molecule
POOL = 5  # candidates for each molecule of a diverse set
ALIKE = 0.3  # from this similarity on, which few pairs have, molecules are said as changes
KEPT = 0.1  # share of a round's molecules that the next one changes
OPTIMISED = 256  # molecules in a round of optimisation


class Answers(Protocol):
    """A trained recogniser's activities of molecules: by name, `value` and `spread`."""

    def __call__(self, molecules: Sequence[Chem.Mol]) -> list[dict[str, Any]]: ...


class Judge:
    """Whether molecules are what a request asks for, and the evidence that goes with them.

    Args:
        memory: of the training molecules.
        answers, reach: of the recogniser, where there is one: activities, and how similar to a
            training molecule one is for which they can be told.
    """

    def __init__(
        self,
        wanted: Wanted,
        memory: Memory,
        answers: Answers | None = None,
        reach: float | None = None,
    ) -> None:
        self.wanted, self.said, self.reach = wanted, answers, reach
        self.known = Bloom(memory.known.numpy(force=True))
        there = (memory.fingerprints > 0).any(1)
        self.fingerprints = memory.fingerprints[there].numpy(force=True)
        self.codes = memory.codes[there].tolist()
        similar = wanted.similar_to
        self.like = None if similar is None else chemistry.fingerprint(similar)
        self.itself = None if similar is None else chemistry.smiles(similar)

    def fault(self, candidate: Candidate) -> str | None:
        """Why a molecule is not what was asked for, in words that fit behind their number."""
        wanted, molecule = self.wanted, candidate.molecule
        if not all(molecule.HasSubstructMatch(pattern) for pattern in wanted.must_have):
            return "lacked a pattern of must_have"
        if any(molecule.HasSubstructMatch(pattern) for pattern in wanted.must_not_have):
            return "had a pattern of must_not_have"
        if wanted.novel and self.known.holds([candidate.smiles])[0]:
            return "were training molecules"
        if candidate.smiles == self.itself:
            return "were similar_to itself"
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
        wanted = self.wanted
        item: Item = {"seed": wanted.seed, "number": candidate.number, "smiles": candidate.smiles}
        if not (wanted.evidence or wanted.svg or wanted.molblock):
            return item
        # Its atoms are numbered as in the SMILES that the item holds, not as they were said.
        molecule = chemistry.read(candidate.smiles)
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
                "nearest": (nearest := self._nearest(molecule)),
            }
            if self.reach is not None and nearest is not None:
                item["in_domain"] = nearest["similarity"] >= self.reach
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
    recogniser = networks["recogniser"] if "recogniser" in networks else None  # noqa: SIM401
    assert recogniser is None or isinstance(recogniser, Recogniser)
    reach = None if recogniser is None else float(recogniser.reach)
    judge = Judge(wanted, memory, answers, reach)
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
    elif wanted.similar_to is not None and wanted.similarity[0] >= ALIKE:
        plan, times = changed(speaker, wanted, [wanted.similar_to]), 1
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
