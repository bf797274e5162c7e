"""Molecules that hold a given part: a generator goes on from it, so that the part stays whole.

A SMILES of the part is written that ends at the atom where something is to be attached. The
generator says what follows; so whatever it says, the part is there, and bound nowhere else.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from rdkit import Chem

from aigc_ray.tasks.molecules import alphabet
from aigc_ray.tasks.molecules.wishes import Scaffold

TRIES = 30  # orders of atoms that are tried for a SMILES that ends where it shall
LINKER = (1, 16)  # tokens between two fragments


class Begun(NamedTuple):
    """A SMILES to go on from, and which atom of the part each of its atoms is."""

    text: str
    order: tuple[int, ...]


def begun(molecule: Chem.Mol, point: int, seed: int) -> Begun | None:
    """The molecule written so that the atom `point` comes last; None where that cannot be."""
    marked = _marked(molecule, point)
    if Chem.SanitizeMol(marked, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    mark = molecule.GetNumAtoms()
    chance = random.Random(seed)
    for _ in range(TRIES):
        root = chance.randrange(mark)
        path = [root] if root == point else [*Chem.GetShortestPath(marked, root, point)]
        rest = [index for index in range(mark) if index not in path]
        chance.shuffle(rest)
        # Branches are written in the order of their atoms' numbers, the last one without brackets.
        order = [*rest, *path, mark]
        turned = Chem.RenumberAtoms(marked.GetMol(), order)
        text = Chem.MolToSmiles(turned, canonical=False, rootedAtAtom=order.index(root))
        last = _with_mark_last(text)
        if last is None:
            continue
        written = turned.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
        return Begun(last, tuple(order[place] for place in written if order[place] != mark))
    return None


def _with_mark_last(text: str) -> str | None:
    """A SMILES without its mark, which stands at its end, or is brought there.

    Where rings close RDKit writes the mark as a branch, X(*)REST; X(REST)* is the same molecule, if
    X stands in the main chain and is no stereocentre, whose neighbours have an order.
    """
    if text.endswith("*"):
        return text[:-1]
    before, found, rest = text.partition("(*)")
    inside = before.count("(") - before.count(")")
    atoms = [token for token in alphabet.tokens(before) if token[-1] not in "0123456789"]
    if not found or inside or atoms[-1] == ")" or "@" in atoms[-1]:
        return None
    return f"{before}({rest})"


def grown(start: Begun, part: Chem.Mol, point: int, text: str) -> Scaffold | None:
    """What became of a part: the molecule, and the numbers that its atoms have now; None where it
    is no molecule, or bound elsewhere than at `point`."""
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or molecule.GetNumAtoms() <= len(start.order):
        return None
    places = [0] * len(start.order)
    for place, index in enumerate(start.order):
        places[index] = place
    for index, place in enumerate(places):
        before, after = part.GetAtomWithIdx(index), molecule.GetAtomWithIdx(place)
        more = after.GetDegree() - before.GetDegree()
        if before.GetAtomicNum() != after.GetAtomicNum() or (more < 1 if index == point else more):
            return None
        if before.GetIsAromatic() != after.GetIsAromatic():
            return None
    return Scaffold(molecule, tuple(places))


def linked(start: Begun, end: str, said: str, seed: int) -> str | None:
    """The SMILES of two fragments with the beginning of what was said between them.

    Args:
        end: the second fragment, written from its attachment point on.
        said: what the generator says after the first.
    """
    depth, rings, cuts = 0, set[str](), []
    tokens = alphabet.tokens(said)
    for place, token in enumerate(tokens[: LINKER[1]], 1):
        if token in "()":
            depth += 1 if token == "(" else -1
        elif token[-1].isdigit() and not token.startswith("["):
            rings ^= {token}
        if depth < 0:
            break
        closed = not rings and depth == 0 and token not in "=#-/\\("
        if closed and place >= LINKER[0]:
            cuts.append(place)
    if not cuts:
        return None
    cut = random.Random(seed).choice(cuts)
    return start.text + "".join(tokens[:cut]) + end


def written_from(molecule: Chem.Mol, point: int) -> str:
    """A SMILES that begins at an atom to which something is attached."""
    marked = _marked(molecule, point)
    Chem.SanitizeMol(marked)
    return Chem.MolToSmiles(marked, rootedAtAtom=molecule.GetNumAtoms())[1:]


def _marked(molecule: Chem.Mol, point: int) -> Chem.RWMol:
    """The molecule with a mark, its last atom, in the place of a hydrogen at `point`."""
    marked = Chem.RWMol(molecule)
    marked.AddBond(point, marked.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
    atom = marked.GetAtomWithIdx(point)
    if atom.GetNumExplicitHs():
        atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    return marked


def ends_with(molecule: Chem.Mol, part: Scaffold) -> bool:
    """Whether a molecule holds a part that is bound to the rest at its one point only."""
    (point,) = part.points
    # Of a symmetric part every match: its one point may lie at any of the places that are alike.
    for match in molecule.GetSubstructMatches(part.molecule, uniquify=False, useChirality=True):
        more = [
            molecule.GetAtomWithIdx(place).GetDegree() - part.molecule.GetAtomWithIdx(n).GetDegree()
            for n, place in enumerate(match)
        ]
        if more[point] == 1 and sum(more) == 1:
            return True
    return False
