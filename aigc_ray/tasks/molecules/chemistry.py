"""Molecules by RDKit: read and made canonical, described by numbers, warned of by patterns.

Whatever comes from outside is read by `read`, whose rules are those of ingestion, requests and
generated samples alike:

- of several fragments (a salt and its counter-ion, a solvent) the one with the most heavy atoms is
  kept, its charges neutralised where a proton can do it; a molecule of one fragment stays as it is;
- the SMILES is RDKit's canonical one, with stereochemistry; equal ones are the same molecule;
- a text of more than 1,000 characters, or a molecule of more than 128 heavy atoms, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import (
    QED,
    FilterCatalog,
    rdDepictor,
    rdFingerprintGenerator,
    rdMolDescriptors,
)
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.Chem.MolStandardize import rdMolStandardize
from rdkit.Chem.Scaffolds import MurckoScaffold

from aigc_ray.errors import UserError

LONGEST, HEAVIEST = 1000, 128  # characters of a SMILES, and heavy atoms of a molecule
PROPERTIES = ("logp", "qed", "sa", "mw", "tpsa", "hbd", "hba", "rings")
UNITS = {"mw": "g/mol", "tpsa": "Å²"}
BITS = 1024  # of a Morgan fingerprint of radius 2
COUNTS, DESCRIPTORS = 2048, 121  # that a recogniser reads

# The medicinal chemistry filters of MOSES (Polykovskiy et al. 2020, Front Pharmacol 11:565644;
# MIT licence), by which its molecules were chosen, beside PAINS, eight-membered and larger rings,
# charges, and atoms other than these.
MOSES_ATOMS = frozenset({"C", "N", "S", "O", "F", "Cl", "Br", "H"})
MOSES_PATTERNS = (
    "[#6]=&!@[#6]-[#6]#[#7]",
    "[#6]=&!@[#6]-[#16](=[#8])=[#8]",
    "[#6]=&!@[#6&!H0]-&!@[#6](=[#8])-&!@[#7]",
    "[H]C([H])([#6])[F,Cl,Br,I]",
    "[#6]1-[#8]-[#6]-1",
    "[#6]-[#7]=[#6]=[#8]",
    "[#6&!H0]=[#8]",
    "[#6](=&!@[#7&!H0])-&!@[#6,#7,#8,#16]",
    "[#6]1-[#7]-[#6]-1",
    "[#6]~&!@[#7]~&!@[#7]~&!@[#6]",
    "[#7]=&!@[#7]",
    "[H][#6]-1=[#6]([H])-[#6]=[#6](-*)-[#8]-1",
    "[H][#6]-1=[#6]([H])-[#6]=[#6](-*)-[#16]-1",
    "[#17,#35,#53]-c(:*):[!#1!#6]:*",
    "[H][#7]([H])-[#6]-1=[#6]-[#6]=[#6]-[#6]=[#6]-1",
    "[#16]~[#16]",
    "[#7]~&!@[#7]~&!@[#7]",
    "[#7]-&!@[#6&!H0&!H1]-&!@[#7]",
    "[#6&!H0](-&!@[#8])-&!@[#8]",
    "[#35].[#35].[#35]",
    "[#17].[#17].[#17].[#17]",
    "[#9].[#9].[#9].[#9].[#9].[#9].[#9]",
)
ALERTS = ("pains", "brenk", "moses")


def read(text: str) -> Chem.Mol:
    """A molecule from SMILES, by the rules above.

    Raises:
        UserError: it does not parse, is empty, too long or too large; in words that fit behind the
            name of a file or field.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise UserError(f"the SMILES has {len(text)} characters; at most {LONGEST} are read")
    if not text:
        raise UserError("the SMILES is empty")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text)
    if molecule is None:
        raise UserError(f"{text!r} is not a SMILES that RDKit can read")
    return parent(molecule)


def parent(molecule: Chem.Mol) -> Chem.Mol:
    """The molecule without what is not bound to it, by the rules above."""
    fragments = Chem.GetMolFrags(molecule, asMols=True, sanitizeFrags=False)
    if len(fragments) > 1:
        order = [(part.GetNumHeavyAtoms(), Chem.MolToSmiles(part)) for part in fragments]
        molecule = fragments[max(range(len(order)), key=order.__getitem__)]
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
            neutral = rdMolStandardize.Uncharger().uncharge(molecule)
            # A proton on an aromatic ring of five carbons leaves what nobody can read.
            if Chem.MolFromSmiles(Chem.MolToSmiles(neutral)) is not None:
                molecule = neutral
    heavy = molecule.GetNumHeavyAtoms()
    if not 1 <= heavy <= HEAVIEST:
        raise UserError(f"the molecule has {heavy} heavy atoms; 1 to {HEAVIEST} are read")
    return molecule


def quiet() -> Any:
    """A context in which RDKit does not write what is wrong with a SMILES."""
    return rdBase.BlockLogs()


def smiles(molecule: Chem.Mol) -> str:
    """The canonical SMILES."""
    return Chem.MolToSmiles(molecule)


def parsed(text: str) -> Chem.Mol | None:
    """The molecule of a generated SMILES, or None where it is none."""
    molecule = Chem.MolFromSmiles(text)
    return None if molecule is None or not molecule.GetNumAtoms() else molecule


# --- numbers ----------------------------------------------------------------------------------


def properties(molecule: Chem.Mol) -> dict[str, float]:
    """`PROPERTIES`: Crippen's logP, QED (Bickerton et al. 2012), synthetic accessibility (Ertl and
    Schuffenhauer 2009, 1 easy to 10 hard), molecular weight in g/mol, topological polar surface in
    Å², donors and acceptors of hydrogen bonds, rings."""
    return {name: property_of(molecule, name) for name in PROPERTIES}  # RDKit remembers atoms' logP


def property_of(molecule: Chem.Mol, name: str) -> float:
    """One of `PROPERTIES`, without the time that the others take."""
    if name == "qed":
        return _qed(molecule, rdMolDescriptors.CalcCrippenDescriptors(molecule)[0])
    if name == "sa":
        return float(_scorer().calculateScore(molecule))
    if name == "logp":
        return float(rdMolDescriptors.CalcCrippenDescriptors(molecule)[0])
    if name == "mw":
        return weight(molecule)
    functions: dict[str, Callable[[Chem.Mol], float]] = {
        "tpsa": rdMolDescriptors.CalcTPSA,
        "hbd": rdMolDescriptors.CalcNumHBD,
        "hba": rdMolDescriptors.CalcNumHBA,
        "rings": rdMolDescriptors.CalcNumRings,
    }
    return float(functions[name](molecule))


def _qed(molecule: Chem.Mol, logp: float) -> float:
    """`QED.qed` in half its time: logP is known, and one call looks for all its alerts."""
    strict = rdMolDescriptors.NumRotatableBondsOptions.Strict
    parts = QED.QEDproperties(
        MW=rdMolDescriptors._CalcMolWt(molecule),
        ALOGP=logp,
        HBA=sum(len(molecule.GetSubstructMatches(pattern)) for pattern in QED.Acceptors),
        HBD=rdMolDescriptors.CalcNumHBD(molecule),
        PSA=rdMolDescriptors.CalcTPSA(molecule),
        ROTB=rdMolDescriptors.CalcNumRotatableBonds(molecule, strict),
        AROM=len(Chem.GetSSSR(Chem.DeleteSubstructs(Chem.Mol(molecule), QED.AliphaticRings))),
        ALERTS=len(_catalog("qed").GetMatches(molecule)),
    )
    return float(QED.qed(molecule, qedProperties=parts))


@cache
def _scorer() -> Any:
    """RDKit's scorer of accessibility, which reads a table of RDKit's that is a pickle."""
    from rdkit.Contrib.SA_Score import sascorer

    return sascorer


def scaffold(molecule: Chem.Mol) -> str:
    """The canonical SMILES of its rings and what links them (Bemis and Murcko 1996); "" without
    rings."""
    found = MurckoScaffold.GetScaffoldForMol(molecule)
    Chem.RemoveStereochemistry(found)
    return Chem.MolToSmiles(found)


@cache
def _morgan(size: int) -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=size)


def fingerprint(molecule: Chem.Mol) -> np.ndarray:
    """(BITS / 8,) uint8: Morgan's of radius 2 (Rogers and Hahn 2010)."""
    return np.packbits(_morgan(BITS).GetFingerprintAsNumPy(molecule))


def counts(molecule: Chem.Mol) -> np.ndarray:
    """(COUNTS,) uint8: how often each of Morgan's environments is there."""
    return np.minimum(_morgan(COUNTS).GetCountFingerprintAsNumPy(molecule), 255).astype(np.uint8)


def descriptors(molecule: Chem.Mol) -> np.ndarray:
    """(DESCRIPTORS,) float32: RDKit's own list, molecular quantum numbers (Nguyen et al. 2009) and
    surfaces by charge, refractivity and logP (Labute 2000)."""
    parts = (
        _properties().ComputeProperties(molecule),
        rdMolDescriptors.MQNs_(molecule),
        rdMolDescriptors.PEOE_VSA_(molecule),
        rdMolDescriptors.SMR_VSA_(molecule),
        rdMolDescriptors.SlogP_VSA_(molecule),
    )
    found = np.concatenate([np.array(part, float) for part in parts])
    return np.nan_to_num(found, posinf=0.0, neginf=0.0).clip(-1e6, 1e6).astype(np.float32)


@cache
def _properties() -> Any:
    return rdMolDescriptors.Properties()


def occluded(molecule: Chem.Mol) -> list[Chem.Mol]:
    """The molecule with one atom after another made unknown; its bonds stay."""
    found = []
    for index in range(molecule.GetNumAtoms()):
        masked = Chem.RWMol(molecule)
        atom = masked.GetAtomWithIdx(index)
        atom.SetAtomicNum(0)
        atom.SetFormalCharge(0)
        atom.SetNumExplicitHs(0)
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
        with quiet():
            Chem.SanitizeMol(masked, catchErrors=True)
        found.append(masked.GetMol())
    return found


def similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) Tanimoto's coefficients of a fingerprint (F,) and others (N, F)."""
    one, others = one.view(np.uint64), others.view(np.uint64)  # eight bytes at a time
    both = np.bitwise_count(one & others).sum(1, dtype=np.int64)
    either = np.bitwise_count(one | others).sum(1, dtype=np.int64)
    return both / np.maximum(either, 1)


def weight(molecule: Chem.Mol) -> float:
    """Molecular weight in g/mol."""
    return float(rdMolDescriptors._CalcMolWt(molecule))


# --- alerts -----------------------------------------------------------------------------------


def alerts(molecule: Chem.Mol, names: tuple[str, ...] = ALERTS) -> list[dict[str, Any]]:
    """What looks dangerous or unclear in an assay: `filter`, `name`, and the `atoms` it is at.

    Args:
        names: of filters: PAINS (Baell and Holloway 2010), BRENK (Brenk et al. 2008), or those of
            MOSES.
    """
    found = []
    for name in names:
        if name == "moses":
            found += _moses(molecule)
            continue
        for entry in _catalog(name).GetMatches(molecule):
            atoms = {
                pair[1] for match in entry.GetFilterMatches(molecule) for pair in match.atomPairs
            }
            found.append({"filter": name, "name": entry.GetDescription(), "atoms": sorted(atoms)})
    return found


def passes(molecule: Chem.Mol, names: tuple[str, ...]) -> bool:
    """Whether none of these filters' alerts is there; quicker than a list of them."""
    for name in names:
        if name == "moses":
            if _moses(molecule) or _catalog("pains").HasMatch(molecule):
                return False
        elif _catalog(name).HasMatch(molecule):
            return False
    return True


def _moses(molecule: Chem.Mol) -> list[dict[str, Any]]:
    """Alerts of the MOSES filters but PAINS."""
    found: list[dict[str, Any]] = []

    def tell(name: str, atoms: list[int]) -> None:
        found.append({"filter": "moses", "name": name, "atoms": sorted(atoms)})

    charged = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetFormalCharge()]
    if charged:
        tell("charged atom", charged)
    others = [a.GetIdx() for a in molecule.GetAtoms() if a.GetSymbol() not in MOSES_ATOMS]
    if others:
        tell("atom other than C, N, S, O, F, Cl, Br", others)
    for ring in molecule.GetRingInfo().AtomRings():
        if len(ring) >= 8:
            tell("ring of eight or more atoms", list(ring))
    heavy = molecule.GetNumAtoms()
    whole = Chem.AddHs(molecule)  # some of the patterns name hydrogens
    for number, pattern in enumerate(_moses_patterns(), 1):
        match = whole.GetSubstructMatch(pattern)
        if match:
            tell(f"MCF{number}", [atom for atom in match if atom < heavy])
    return found


@cache
def _moses_patterns() -> tuple[Chem.Mol, ...]:
    return tuple(Chem.MolFromSmarts(pattern) for pattern in MOSES_PATTERNS)


@cache
def _catalog(name: str) -> FilterCatalog.FilterCatalog:
    catalogs = FilterCatalog.FilterCatalogParams.FilterCatalogs
    if name != "qed":
        return FilterCatalog.FilterCatalog({"pains": catalogs.PAINS, "brenk": catalogs.BRENK}[name])
    found = FilterCatalog.FilterCatalog()
    for number, pattern in enumerate(QED.StructuralAlerts):
        matcher = FilterCatalog.SmartsMatcher(str(number), pattern, 1)
        found.AddEntry(FilterCatalog.FilterCatalogEntry(str(number), matcher))
    return found


def svg(molecule: Chem.Mol, size: int = 240, marked: Mapping[int, float] | None = None) -> str:
    """A drawing; atoms that are `marked`, from -1 to 1, in red or blue, pale enough to be read."""
    drawer = rdMolDraw2D.MolDraw2DSVG(size, size)
    colours = {
        atom: (1.0, 1 - pale, 1 - pale) if v < 0 else (1 - pale, 1 - pale, 1.0)
        for atom, v in (marked or {}).items()
        for pale in [0.6 * abs(v)]
    }
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer, molecule, highlightAtoms=list(colours), highlightAtomColors=colours
    )
    drawer.FinishDrawing()
    return str(drawer.GetDrawingText())


def block(molecule: Chem.Mol) -> str:
    """Its atoms and bonds with places in the plane, as an SDF holds them."""
    flat = Chem.Mol(molecule)
    rdDepictor.Compute2DCoords(flat)
    return Chem.MolToMolBlock(flat)


def inchi_key(molecule: Chem.Mol) -> str:
    """The hash of a molecule's standard InChI."""
    with rdBase.BlockLogs():
        return str(Chem.MolToInchiKey(molecule))


def pattern(text: str, field: str) -> Chem.Mol:
    """A SMARTS pattern of a request."""
    with rdBase.BlockLogs():
        found = Chem.MolFromSmarts(text) if text and len(text) <= LONGEST else None
    if found is None or not found.GetNumAtoms():
        raise UserError(f"{field} is a list of SMARTS patterns; got {text!r}")
    return found


def listed(found: Mapping[str, int]) -> str:
    """Reasons with how often they occurred, the commonest first, as a sentence's part."""
    order = sorted(found.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count} {reason}" for reason, count in order if count)
