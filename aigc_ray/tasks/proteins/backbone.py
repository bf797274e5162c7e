"""From CA traces to backbones, and from backbones to PDB files.

Between two CA atoms lies a peptide plane whose only freedom is to turn about the line through
them. All planes of a chain are turned together, by dynamic programming over angles that become
finer: neighbours have to agree on the angle at the CA atom they share and on its φ and ψ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ray.tasks.proteins import geometry

# Engh and Huber 1991: ångström and degrees.
CA_C, C_N, N_CA, C_O, CA_CB = 1.525, 1.329, 1.458, 1.231, 1.530
CA_C_N, C_N_CA, CA_C_O, N_CA_C, N_CA_CB = 116.2, 121.7, 120.8, 111.2, 110.4
# Degrees; wider than the 2.8 of Engh and Huber, for real planes are not quite flat and not quite
# ideal either: windows of real chains come back more exactly than with 2.8 or 5.
N_CA_C_SPREAD = 4.0

ROWS = 16  # chains at a time: some 2 MB for each table of pairs of angles
COARSE = 24  # angles of a plane at first, 15° apart
FINE = 9  # then around the best, four times finer each time
ROUNDS = 2

# φ and ψ in degrees, how often about, and how sharp the peak is (von Mises κ of each angle).
PEAKS = (
    (-63.0, -43.0, 0.45, 14.0),  # alpha helix
    (-115.0, 135.0, 0.40, 7.0),  # beta strand
    (-70.0, 145.0, 0.20, 8.0),  # polyproline II
    (-90.0, 0.0, 0.08, 6.0),  # turns, between helix and strand
    (57.0, 45.0, 0.02, 12.0),  # left-handed alpha: glycine, asparagine
)
FLOOR = 1e-5  # beside the peaks, so that no pair of angles is impossible
APART = 2.9  # Å; carbonyl oxygens of neighbours are hardly nearer


def backbone(ca: Tensor) -> Tensor:
    """(B, L, 4, 3) N, CA, C and O of traces (B, L, 3), L of 4 or more, in ångström.

    CA atoms stay where they are; all peptides are trans. Where two CA atoms are not 3.80 Å apart
    the plane between them is stretched along the line through them. One more plane is added at
    either end, which goes on as the chain does there, so that the first N and the last C and O
    are placed like all others.
    """
    with torch.no_grad():
        return torch.cat([_built(rows) for rows in ca.split(ROWS)])


def beta_carbons(atoms: Tensor) -> Tensor:
    """(..., 3) CB of backbones (..., 4, 3), where an L amino acid has it."""
    n, ca, c = atoms[..., 0, :], atoms[..., 1, :], atoms[..., 2, :]
    to_n, to_c = F.normalize(n - ca, dim=-1), F.normalize(c - ca, dim=-1)
    away = F.normalize(-(to_n + to_c), dim=-1)
    aside = F.normalize(torch.linalg.cross(to_n, to_c), dim=-1)
    cosine = -math.cos(math.radians(N_CA_CB)) / math.cos(math.radians(N_CA_C / 2))
    return ca + CA_CB * (cosine * away + math.sqrt(1 - cosine**2) * aside)


def torsions(atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ and ψ (..., L-2) of the residues that have both, and ω (..., L-1), in radians."""
    n, ca, c = atoms[..., 0, :], atoms[..., 1, :], atoms[..., 2, :]
    here, after = slice(None, -1), slice(1, None)
    phi = geometry.torsion(c[..., here, :], n[..., after, :], ca[..., after, :], c[..., after, :])
    psi = geometry.torsion(n[..., here, :], ca[..., here, :], c[..., here, :], n[..., after, :])
    omega = geometry.torsion(ca[..., here, :], c[..., here, :], n[..., after, :], ca[..., after, :])
    return phi[..., :-1], psi[..., 1:], omega


# --- planes -----------------------------------------------------------------------------------


def _built(ca: Tensor) -> Tensor:
    planes = _planes(_continued(ca))
    step = 2 * math.pi / COARSE
    angle = step * torch.arange(COARSE, device=ca.device, dtype=ca.dtype)
    angle = angle.expand(*planes.along.shape[:2], -1)
    for _ in range(ROUNDS + 1):
        chosen = angle.gather(2, _best(_cost(planes, angle))[..., None])
        step = step / 4
        angle = chosen + step * (torch.arange(FINE, device=ca.device) - FINE // 2)
    c, o, n = (atom[:, :, 0] for atom in planes.atoms(chosen))
    return torch.stack([n[:, :-1], ca, c[:, 1:], o[:, 1:]], dim=2)


class _Planes(NamedTuple):
    """The planes of chains, each with a frame round the line from its CA atom to the next."""

    start: Tensor  # (B, P, 3)
    along: Tensor  # (B, P, 3), the whole way to the next CA atom
    up: Tensor  # (B, P, 3), of length 1, across `along`
    side: Tensor  # (B, P, 3), of length 1, across both

    def atoms(self, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C, O and N of the next residue (B, P, K, 3) each, of planes turned by (B, P, K)."""
        up = torch.cos(angle)[..., None] * self.up[:, :, None]
        up = up + torch.sin(angle)[..., None] * self.side[:, :, None]
        start, along = self.start[:, :, None], self.along[:, :, None]
        c, o, n = (start + share * along + height * up for share, height in _IDEAL)
        return c, o, n


def _ideal() -> list[tuple[float, float]]:
    """C, O and N of a flat trans peptide: how far along from CA to CA (0 to 1), how far up (Å)."""
    turn = math.radians(180 - CA_C_N)
    c, n = complex(CA_C), CA_C + C_N * complex(math.cos(turn), math.sin(turn))
    back = turn - math.radians(180 - C_N_CA)  # trans: it bends back
    end = n + N_CA * complex(math.cos(back), math.sin(back))
    towards = math.radians(CA_C_O - 180)
    o = c + C_O * complex(math.cos(towards), math.sin(towards))
    return [((atom / end).real, (atom / end).imag * abs(end)) for atom in (c, o, n)]


_IDEAL = _ideal()


def _planes(ca: Tensor) -> _Planes:
    along = ca.diff(dim=1)
    direction = F.normalize(along, dim=-1)
    # "Up" comes from the bends on both sides, so that a turned trace gets a turned backbone; in
    # unequal shares, for those of a zigzag cancel out.
    bend = F.pad(direction.diff(dim=1), (0, 0, 1, 1))
    up = bend[:, :-1] + bend[:, 1:] * 0.5
    up = up + 1e-4 * direction.roll(1, -1)  # somewhere, where the chain is straight
    up = F.normalize(up - (up * direction).sum(-1, keepdim=True) * direction, dim=-1)
    return _Planes(ca[:, :-1], along, up, torch.linalg.cross(direction, up))


def _continued(ca: Tensor) -> Tensor:
    """(B, L+2, 3): one more atom at either end, with the dihedral and the angle found there."""
    return torch.cat([_before(ca), ca, _before(ca.flip(1))], dim=1)


def _before(ca: Tensor) -> Tensor:
    first, second, third, fourth = ca[:, :4].unbind(1)
    cosine = F.cosine_similarity(first - second, third - second, dim=-1)
    dihedral = geometry.torsion(first, second, third, fourth)
    angle = torch.acos(cosine.clamp(-1, 1))
    return geometry.place(third, second, first, geometry.BOND, angle, dihedral)[:, None]


# --- the choice -------------------------------------------------------------------------------


def _cost(planes: _Planes, angle: Tensor) -> Tensor:
    """(B, P-1, K, K): what it costs at a CA atom that the plane before it is turned by one angle
    and the plane after it by another, in units of kT or so.
    """
    c, o, n = planes.atoms(angle)
    ca = planes.start[:, 1:, None]
    before, after = slice(None, -1), slice(1, None)
    # φ is about N-CA, known with the plane before; ψ about CA-C, known with the plane after. The
    # rest of each is a product of something of the one plane with something of the other.
    from_n, to_c = ca - n[:, before], c[:, after] - ca
    n_unit, c_unit = F.normalize(from_n, dim=-1), F.normalize(to_c, dim=-1)
    into, out = n[:, before] - c[:, before], n[:, after] - c[:, after]
    phi_normal = torch.linalg.cross(into, n_unit)
    phi = _direction(phi_normal @ to_c.mT, torch.linalg.cross(phi_normal, n_unit) @ to_c.mT)
    psi_normal = torch.linalg.cross(c_unit, out)
    psi = _direction(from_n @ psi_normal.mT, from_n @ torch.linalg.cross(c_unit, psi_normal).mT)
    ideal = math.radians(N_CA_C)
    bent = (-n_unit @ c_unit.mT - math.cos(ideal)) / math.sin(ideal)
    cost = (bent / math.radians(N_CA_C_SPREAD)).square() / 2
    near = (APART - torch.cdist(o[:, before], o[:, after])).clamp_min(0)
    return cost + ramachandran(phi, psi) + 10 * near.square()


Direction = tuple[Tensor, Tensor]  # sine and cosine of an angle


def _direction(sine: Tensor, cosine: Tensor) -> Direction:
    length = (sine.square() + cosine.square()).clamp_min(1e-12).rsqrt()
    return sine * length, cosine * length


def ramachandran(phi: Direction, psi: Direction) -> Tensor:
    """The energy of φ and ψ in kT: minus the logarithm of a mixture of smooth peaks."""
    density = torch.full_like(phi[0], FLOOR)
    for phi_peak, psi_peak, share, sharpness in PEAKS:
        a, b = math.radians(phi_peak), math.radians(psi_peak)
        near = phi[0] * math.sin(a) + phi[1] * math.cos(a)
        near = near + psi[0] * math.sin(b) + psi[1] * math.cos(b) - 2
        # A von Mises peak of width 1/√κ is about κ/2π high in each of two directions.
        density = density + share * sharpness / (2 * math.pi) * torch.exp(sharpness * near)
    return -torch.log(density)


def _best(cost: Tensor) -> Tensor:
    """(B, P) which of K angles each plane takes, for the least sum of (B, P-1, K, K) (Viterbi)."""
    total = torch.zeros_like(cost[:, 0, :, 0])
    came_from = []
    for step in cost.unbind(1):
        total, index = (total[:, :, None] + step).min(1)
        came_from.append(index)
    path = [total.argmin(1)]
    for index in reversed(came_from):
        path.append(index.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


# --- files ------------------------------------------------------------------------------------

NAMES = {
    "A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU",
    "G": "GLY", "H": "HIS", "I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE",
    "P": "PRO", "S": "SER", "T": "THR", "W": "TRP", "Y": "TYR", "V": "VAL",
}  # fmt: skip


def to_pdb(
    atoms: Tensor,
    sequence: str | None = None,
    remarks: Sequence[str] = (),
    assignment: str | None = None,
) -> str:
    """A PDB file (format 3.3) of one chain A of N, CA, C, O, and CB where not glycine.

    It says first that it is a model: nothing that this program writes was measured.

    Args:
        atoms: (L, 4, 3) ångström, L up to 9999.
        sequence: L letters; without it the chain is of alanine. Other letters become UNK.
        remarks: lines of REMARK 3, in ASCII, wrapped at 69 characters.
        assignment: L letters, H for a helix and E for a strand: runs become HELIX and SHEET.
    """
    length = len(atoms)
    names = ["ALA"] * length if sequence is None else [NAMES.get(one, "UNK") for one in sequence]
    for what, text in (("sequence", sequence), ("assignment", assignment)):
        if text is not None and len(text) != length:
            raise ValueError(f"{what} has one letter a residue, {length}; got {len(text)}")
    beta = beta_carbons(atoms)
    lines = ["EXPDTA    THEORETICAL MODEL"]
    lines += [
        f"REMARK   3 {line[start : start + 69]}"
        for line in remarks
        for start in range(0, max(1, len(line)), 69)
    ]
    lines += _secondary(names, assignment or "")
    serial = 0
    for i, name in enumerate(names):
        places = [*zip(("N", "CA", "C", "O"), atoms[i].tolist(), strict=True)]
        if name != "GLY":
            places.append(("CB", beta[i].tolist()))
        for atom, (x, y, z) in places:
            serial += 1
            lines.append(
                f"ATOM  {serial:5d}  {atom:<3} {name} A{i + 1:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {atom[0]:>2}"
            )
    lines += [f"TER   {serial + 1:5d}      {names[-1]} A{length:4d}", "END"]
    return "".join(f"{line:<80}\n" for line in lines)


def _secondary(names: Sequence[str], assignment: str) -> list[str]:
    lines, number, first = [], {"H": 0, "E": 0}, 0
    for letter, run in groupby(assignment):
        last = first + len(list(run)) - 1
        if letter in number and last > first:
            number[letter] += 1
            n = number[letter]
            ends = (names[first], first + 1, names[last], last + 1, last - first + 1)
            lines.append(_helix(n, *ends) if letter == "H" else _strand(n, *ends))
        first = last + 1
    return lines


def _helix(n: int, name: str, start: int, last_name: str, end: int, length: int) -> str:
    ends = f"{name} A {start:4d}  {last_name} A {end:4d} "
    return f"HELIX  {n:3d} {n:3d} {ends} 1{'':30} {length:5d}"


def _strand(n: int, name: str, start: int, last_name: str, end: int, length: int) -> str:
    # Which strands pair is not known: each is a sheet of its own.
    return f"SHEET    1 {n:>3} 1 {name} A{start:4d}  {last_name} A{end:4d}  0"
