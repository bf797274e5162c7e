"""Chains of amino acids from PDB and mmCIF files, read by gemmi.

A file comes from outside and may be anything: whatever is wrong with it becomes a `UserError` of
one sentence, its size is bounded before work is done on it, and nothing is written.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby, islice, pairwise
from typing import NamedTuple

import gemmi
import numpy as np

from aigc_ray.errors import UserError

ENDINGS = tuple(
    ending + packed for ending in (".pdb", ".ent", ".cif", ".mmcif") for packed in ("", ".gz")
)
WINDOW = 64  # residues that are looked at together
BYTES = 64 << 20  # of a file, unpacked
# gemmi's time grows with the square of a chain's residues and of the changes of the chain.
ATOMS, RESIDUES, CHAINS = 500_000, 50_000, 5_000
BACKBONE = ("N", "CA", "C", "O")
BOND = (2.7, 4.2)  # angstrom between neighbours' CA: 3.8, and 2.9 across a cis peptide
COLUMNS = 66  # of a PDB line: behind the B factor old files have what gemmi takes for charges
FARTHEST = 1e5  # angstrom, of a coordinate
PEPTIDE = 2.0  # angstrom between C and the next residue's N, at most: 1.33 and an error

# Both formats are ASCII; what else stands in a remark is no matter, and in a name it would be.
_ASCII = bytes(byte if byte < 128 else ord("?") for byte in range(256))
_GZIP = b"\x1f\x8b"
# Of a PDB line the residue (name, chain, number, insertion code), and the coordinates.
_ATOM = re.compile(rb"^(?:ATOM|HETA)[^\r\n]{13}([^\r\n]{10})[^\r\n]{3}([^\r\n]{24})", re.MULTILINE)
_CHAIN = 4  # the chain's place in the residue
_COLUMNS = (  # of mmCIF's loop _atom_site; the first ones tell residues apart
    "auth_asym_id", "label_asym_id", "auth_seq_id", "label_seq_id", "pdbx_PDB_ins_code",
    "label_comp_id", "auth_comp_id", "group_PDB", "id", "type_symbol", "label_atom_id",
    "auth_atom_id", "label_alt_id", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy",
)  # fmt: skip
_MODEL = "THEORETICAL MODEL"  # the method of what was not measured, in both formats
_ANYWHERE = re.compile(_MODEL.encode(), re.IGNORECASE)
_EXPDTA = re.compile(rb"^EXPDTA[^\r\n]{0,74}" + _MODEL.encode(), re.IGNORECASE | re.MULTILINE)
_NEXT_MODEL = re.compile(rb"^(?:ENDMDL|END[ \r\n])", re.MULTILINE)


class Chain(NamedTuple):
    """The residues of one chain that have a CA atom, in the order of the file."""

    name: str
    sequence: str  # a letter a residue; of a modified one its parent's, X where there is none
    number: list[str]  # residue numbers with insertion codes, as the file has them
    backbone: np.ndarray  # (n, 4, 3) float32, angstrom, of N, CA, C and O; NaN where absent
    starts: list[int]  # of segments, 0 first; no bond leads to the residue at a start

    def segments(self) -> Iterator[range]:
        """The stretches without a break."""
        for start, end in pairwise([*self.starts, len(self.sequence)]):
            yield range(start, end)


class _Residue(NamedTuple):
    letter: str
    number: str
    order: tuple[int, str]  # the number and insertion code
    place: int | None  # in the whole sequence, where an mmCIF file says it
    foreign: bool  # of a HETATM record
    atoms: np.ndarray  # (4, 3) float64


def parse(content: bytes, name: str) -> list[Chain]:
    """The chains of a file that hold at least one segment of `WINDOW` residues.

    Of an ensemble the first model is read. A residue counts if it is an amino acid, or anything
    with N, CA and C, and stands in an ATOM record or is bonded to a neighbour: so modified
    residues count, and water, ions, ligands and nucleic acids do not.

    Raises:
        UserError: what is wrong with the file, or that no chain of it is long enough.
    """
    model = _model(_unpacked(content, name), name)
    chains = []
    for chain in model:
        where = f"{name}: chain {chain.name!r}"
        residues = _bonded([_residue(group, where) for group in _amino_acids(chain)])
        if residues:
            chains.append(_chain(chain.name, residues, where))
    if not chains:
        nucleic = any(
            gemmi.find_tabulated_residue(residue.name).is_nucleic_acid()
            for chain in model
            for residue in chain
        )
        holds = "nucleic acids only" if nucleic else "no CA atoms of amino acids"
        raise UserError(f"{name} holds {holds}, and a protein's backbone is needed")
    longest = max(len(segment) for chain in chains for segment in chain.segments())
    if longest < WINDOW:
        raise UserError(
            f"{name}: its longest stretch without a break has {longest} residues, and {WINDOW} "
            "are needed"
        )
    return [one for one in chains if any(len(segment) >= WINDOW for segment in one.segments())]


def theoretical(content: bytes) -> bool:
    """Whether a file says that it is a model; no for one that cannot be read."""
    try:
        text = _unpacked(content, "file")
        if not _is_cif(text):
            return _EXPDTA.search(text) is not None
        if not _ANYWHERE.search(text):  # which is quicker than to read it
            return False
        document = gemmi.cif.read_string(text)
    except (UserError, RuntimeError, ValueError, IndexError, OverflowError):
        return False
    methods = [one for block in document for one in block.find_values("_exptl.method")]
    return any(gemmi.cif.as_string(one).upper() == _MODEL for one in methods)


# --- files ------------------------------------------------------------------------------------


def _unpacked(content: bytes, name: str) -> bytes:
    if content.startswith(_GZIP):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{name} is a broken .gz file: {error}") from None
    if len(content) > BYTES:
        raise UserError(f"{name} has more than the {BYTES >> 20} MiB allowed")
    text = content.removeprefix(b"\xef\xbb\xbf").translate(_ASCII)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def _model(text: bytes, name: str) -> gemmi.Model:
    """The first model."""
    is_cif = _is_cif(text)
    try:
        structure = _cif(text, name) if is_cif else _pdb(text, name)
        structure.merge_chain_parts()
        if not structure or not structure[0].count_atom_sites():
            raise UserError(f"{name} holds no atoms")
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        # gemmi repeats the line behind its words, and what is wrong stands before.
        reason = " ".join(str(error).partition("\n")[0].split())[:200].rstrip(".:")
        kind = "mmCIF" if is_cif else "PDB"
        raise UserError(f"{name} is not readable as {kind}: {reason}") from None
    return structure[0]


def _is_cif(text: bytes) -> bool:
    lines = (line.strip() for line in io.BytesIO(text))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return first.lower().startswith(b"data_")


def _check_size(residues: Sequence[Hashable], chains: Sequence[Hashable], name: str) -> None:
    """Refuse what would take long, by the residue and the chain of each atom."""
    for found, most, what in (
        (len(residues), ATOMS, "atoms"),
        (sum(1 for _ in groupby(residues)), RESIDUES, "residues"),
        (sum(1 for _ in groupby(chains)), CHAINS, "changes of the chain"),
    ):
        if found > most:
            raise UserError(f"{name} has more than the {most} {what} allowed")


def _pdb(text: bytes, name: str) -> gemmi.Structure:
    if end := _NEXT_MODEL.search(text):
        text = text[: end.start()]
    atoms = _ATOM.findall(text)
    if not atoms:
        raise UserError(f"{name} is neither PDB nor mmCIF: it has no ATOM records and no data_")
    residues, coordinates = zip(*atoms, strict=True)
    _check_size(residues, [one[_CHAIN] for one in residues], name)
    try:
        # gemmi takes what is no number for 0.
        numbers = np.frombuffer(b"".join(coordinates), "S8").astype(np.float64)
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise UserError(f"{name} has coordinates that are not finite numbers")
    # A TER stands at each break of some files: which residues count is decided here.
    return gemmi.read_pdb_string(text, max_line_length=COLUMNS, ignore_ter=True)


def _cif(text: bytes, name: str) -> gemmi.Structure:
    # Many a file has further blocks, of ligands: the first with atoms is meant.
    document = gemmi.cif.read_string(text)
    block = next((one for one in document if one.find_loop("_atom_site.Cartn_x")), None)
    if block is None:
        raise UserError(f"{name} has no atoms: the loop _atom_site is missing")
    found = {tag: block.find_loop(f"_atom_site.{tag}") for tag in (*_COLUMNS, "pdbx_PDB_model_num")}
    models = next(groupby(found.pop("pdbx_PDB_model_num")), (None, found["Cartn_x"]))[1]
    count = min(sum(1 for _ in models), ATOMS + 1)
    column = {tag: list(islice(values, count)) for tag, values in found.items() if values}
    chains = column.get("auth_asym_id", column.get("label_asym_id", []))
    residues = zip(*(column[tag] for tag in _COLUMNS[:6] if tag in column), strict=True)
    _check_size(list(residues), chains, name)
    # A block of the first model's atoms alone, since nothing else of the file is looked at.
    alone = gemmi.cif.Block("atoms")
    alone.init_loop("_atom_site.", list(column)).set_all_values(list(column.values()))
    return gemmi.make_structure_from_block(alone)


# --- residues ---------------------------------------------------------------------------------


def _amino_acids(chain: gemmi.Chain) -> Iterator[list[gemmi.Residue]]:
    """Residues that look like amino acids; several where a file has several at one place."""
    found = (residue for residue in chain if _is_amino_acid(residue))
    for _, group in groupby(found, key=lambda residue: str(residue.seqid)):
        yield list(group)


def _is_amino_acid(residue: gemmi.Residue) -> bool:
    # A calcium ion's atom is called CA too, but it is no amino acid and has no N and C.
    names = {atom.name for atom in residue}
    known = gemmi.find_tabulated_residue(residue.name).is_amino_acid()
    return "CA" in names and (known or {"N", "C"} <= names)


def _residue(group: list[gemmi.Residue], where: str) -> _Residue:
    """The residue at one place, at the alternate location of the highest occupancy."""
    number = str(group[0].seqid)
    found = [(one, atom) for one in group for atom in one if atom.name in BACKBONE]
    twice = Counter((one.name, atom.name, atom.altloc) for one, atom in found).most_common(1)[0][1]
    centres = [(one, atom) for one, atom in found if atom.name == "CA"]
    if twice > 1 or (len(group) > 1 and any(not atom.has_altloc() for _, atom in centres)):
        raise UserError(f"{where} has residue {number} twice")
    # All atoms are of one location, and the CA must be among them.
    labelled = [pair for pair in centres if pair[1].has_altloc()] or [
        pair for pair in found if pair[1].has_altloc()
    ]
    residue, label = group[0], ""
    if labelled:
        residue, best = max(labelled, key=lambda pair: pair[1].occ)
        label = best.altloc
    atoms = np.full((len(BACKBONE), 3), np.nan)
    for one, atom in found:
        if one is residue and (atom.altloc == label or not atom.has_altloc()):
            atoms[BACKBONE.index(atom.name)] = position = atom.pos.tolist()
            if not all(abs(x) < FARTHEST for x in position):
                raise UserError(f"{where} has coordinates that are not finite at residue {number}")
    if residue.seqid.num is None:
        raise UserError(f"{where} has a residue without a number")
    letter = gemmi.find_tabulated_residue(residue.name).one_letter_code.upper()
    return _Residue(
        letter if letter.isalpha() else "X",
        number,
        (residue.seqid.num, residue.seqid.icode),
        residue.label_seq,
        residue.het_flag == "H",
        atoms,
    )


def _bonded(residues: list[_Residue]) -> list[_Residue]:
    """Without free amino acids: those of HETATM records that no neighbour is bonded to."""
    if not residues:
        return []
    bond = _bonds(np.stack([one.atoms for one in residues]))
    near = np.append(bond, False) | np.append(False, bond)
    return [one for one, is_near in zip(residues, near, strict=True) if is_near or not one.foreign]


def _bonds(atoms: np.ndarray) -> np.ndarray:
    """Whether residues (n, 4, 3) are as far from the next one as bonded ones are: (n - 1,) bool."""
    distance = np.linalg.norm(np.diff(atoms[:, 1], axis=0), axis=1)
    return (distance >= BOND[0]) & (distance <= BOND[1])


def _chain(name: str, residues: list[_Residue], where: str) -> Chain:
    atoms = np.stack([one.atoms for one in residues])
    # Numbers may fall where a chain plainly goes on (cloned ends, inserted domains): the peptide
    # bond or the whole sequence shows it. Elsewhere a file is out of order.
    peptide = np.linalg.norm(atoms[1:, 0] - atoms[:-1, 2], axis=1) < PEPTIDE
    for (one, following), goes_on in zip(pairwise(residues), peptide, strict=True):
        if one.place is not None and following.place is not None:
            rises = one.place < following.place
        else:
            rises = one.order < following.order
        if not rises and not goes_on:
            raise UserError(
                f"{where} is out of order: residue {following.number} comes after {one.number}"
            )
    number, times = Counter(one.number for one in residues).most_common(1)[0]
    if times > 1:
        raise UserError(f"{where} has residue {number} twice")
    return Chain(
        name,
        "".join(one.letter for one in residues),
        [one.number for one in residues],
        atoms.astype(np.float32),
        [0, *(np.flatnonzero(~_bonds(atoms)) + 1).tolist()],
    )
