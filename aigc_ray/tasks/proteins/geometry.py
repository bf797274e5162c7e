"""Traces of CA atoms as pictures and as shapes: distances, handedness, superposition.

A trace is (B, L, 3) in ångström, residues in chain order and without a break. A table of
distances is the same for a structure and its mirror image, so the picture has a second channel
that tells the two apart. All is batched, and differentiable unless it says otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BOND = 3.80  # Å between the CA atoms on both sides of a trans peptide
CONTACT = 8.0  # Å; CA atoms nearer than this touch
NEAR = 4.0  # Å; where the scale of the picture turns from linear to logarithmic
FAR = 64.0  # Å; drawn as 1, beyond nearly all pairs of a window of 64 residues


# --- pictures ---------------------------------------------------------------------------------


def distances(ca: Tensor) -> Tensor:
    """(B, L, L) in ångström, exactly symmetric; the gradient is 0 where two atoms coincide."""
    squared = (ca[..., :, None, :] - ca[..., None, :, :]).square().sum(-1)
    apart = squared > 0
    return torch.where(apart, squared.where(apart, torch.ones_like(squared)).sqrt(), 0.0)


def chirality(ca: Tensor) -> Tensor:
    """(B, L-3) in [-1, 1]: which way four consecutive atoms turn, positive for a right-handed
    helix.

    The triple product of the three vectors between them, each of unit length; .77 in an ideal
    alpha helix, around -.1 in a strand, 0 where the four lie in a plane.
    """
    steps = _unit(ca.diff(dim=-2))
    first, second, third = steps[..., :-2, :], steps[..., 1:-1, :], steps[..., 2:, :]
    return (first * torch.linalg.cross(second, third)).sum(-1)


def image(ca: Tensor) -> Tensor:
    """(B, 2, L, L), symmetric with a diagonal of zeros: what critic and recogniser look at.

    Channel 0 is `scaled` distances. Channel 1 is the chirality in a band round the diagonal:
    entry (i, j) is the mean over the runs of four residues that hold both i and j, and 0 where
    |i - j| > 3.
    """
    distance, turn = distances(ca), chirality(ca)
    band = torch.zeros_like(distance)
    for lag in (1, 2, 3):
        runs = _windows(turn, 3 - lag) / _windows(torch.ones_like(turn), 3 - lag)
        band = band + torch.diag_embed(runs, lag)
    return torch.stack([scaled(distance), band + band.mT], dim=-3)


def scaled(distance: Tensor) -> Tensor:
    """From ångström to the unit of the picture: 0 at 0 Å, 1 at 64 Å, a logarithm beyond 4 Å.

    So an error in the picture is one relative to the distance, which is how `recover` weighs
    them too. Not clipped: a stretched window goes a little beyond 1.
    """
    return torch.log1p(distance / NEAR) / math.log1p(FAR / NEAR)


def unscaled(picture: Tensor) -> Tensor:
    """The inverse of `scaled`: ångström, never negative."""
    return torch.expm1(picture.clamp_min(0) * math.log1p(FAR / NEAR)) * NEAR


def read_chirality(band: Tensor) -> Tensor:
    """(B, L-3): the chirality read back from channel 1 (B, L, L) of a picture."""
    return (band.diagonal(3, -2, -1) + band.diagonal(-3, -2, -1)) / 2


# --- angles -----------------------------------------------------------------------------------


def torsion(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The dihedral angle a-b-c-d of points (..., 3), radians in (-π, π], IUPAC's sign."""
    before, axis, after = b - a, c - b, d - c
    normal = torch.linalg.cross(axis, after)
    sine = (before * normal).sum(-1) * torch.linalg.vector_norm(axis, dim=-1)
    return torch.atan2(sine, (torch.linalg.cross(before, axis) * normal).sum(-1))


def dihedrals(ca: Tensor) -> Tensor:
    """(B, L-3) radians, of four consecutive CA atoms: 50° in an alpha helix, -170° in a strand."""
    return torsion(ca[..., :-3, :], ca[..., 1:-2, :], ca[..., 2:-1, :], ca[..., 3:, :])


def place(
    a: Tensor, b: Tensor, c: Tensor, bond: Tensor | float, angle: Tensor, dihedral: Tensor
) -> Tensor:
    """The point d that makes |c-d|, the angle b-c-d and the dihedral a-b-c-d what they should be.

    NeRF (Parsons et al. 2005). Points are (..., 3), angles (...) radians.
    """
    along = _unit(c - b)
    normal = _unit(torch.linalg.cross(b - a, along))
    side = torch.linalg.cross(normal, along)
    turned = torch.cos(dihedral)[..., None] * side + torch.sin(dihedral)[..., None] * normal
    step = torch.sin(angle)[..., None] * turned - torch.cos(angle)[..., None] * along
    return c + bond * step


# --- likeness ---------------------------------------------------------------------------------


def superpose(mobile: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
    """`mobile` (B, L, 3) turned and moved onto `fixed` with the least weighted squared error.

    Kabsch 1978: rotations only, a mirror image stays one. `weight` is (B, L).
    """
    if weight is None:
        weight = torch.ones_like(mobile[..., 0])
    share = (weight / weight.sum(-1, keepdim=True))[..., None]
    from_centre = mobile - (share * mobile).sum(-2, keepdim=True)
    centre = (share * fixed).sum(-2, keepdim=True)
    overlap = ((share * from_centre)[..., :, None] * (fixed - centre)[..., None, :]).sum(-3)
    u, _, vh = torch.linalg.svd(overlap.double())
    proper = torch.linalg.det(u @ vh).sign()
    u = torch.cat([u[..., :2], u[..., 2:] * proper[..., None, None]], dim=-1)
    return from_centre @ (u @ vh).to(mobile.dtype) + centre


def rmsd(a: Tensor, b: Tensor) -> Tensor:
    """(B,) ångström between traces (B, L, 3), superposed."""
    return (superpose(a, b) - b).square().sum(-1).mean(-1).sqrt()


def rmsd_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) ångström between all traces of a (N, L, 3) and b (M, L, 3), superposed.

    Without any rotation: the three singular values of the overlap are all that Kabsch's error
    needs, and those of a 3x3 matrix have a closed form (Smith 1961), in float64.
    """
    a, b = (part.double() - part.double().mean(-2, keepdim=True) for part in (a, b))
    overlap = torch.einsum("nli,mlj->nmij", a, b)
    squared = torch.einsum("nmki,nmkj->nmij", overlap, overlap)
    middle = squared.diagonal(dim1=-2, dim2=-1).mean(-1)
    spread = squared - middle[..., None, None] * torch.eye(3, dtype=a.dtype, device=a.device)
    radius = (spread.square().sum((-2, -1)) / 6).sqrt().clamp_min(1e-12)
    cosine = torch.linalg.det(spread / radius[..., None, None]) / 2
    angle = torch.acos(cosine.clamp(-1, 1)) / 3
    first = (middle + 2 * radius * torch.cos(angle)).clamp_min(1e-12).sqrt()
    third = middle + 2 * radius * torch.cos(angle + 2 * math.pi / 3)
    second = (3 * middle - first.square() - third).clamp_min(1e-12).sqrt()
    # The least, with its sign, by the determinant: a difference of squares would lose its digits.
    signed = torch.linalg.det(overlap) / (first * second)
    size = a.square().sum((-2, -1))[:, None] + b.square().sum((-2, -1))
    return ((size - 2 * (first + second + signed)).clamp_min(0) / a.shape[1]).sqrt()


def tm_score(a: Tensor, b: Tensor, rounds: int = 12) -> Tensor:
    """(B,) in (0, 1]: TM-score of traces of one length, residue i against residue i (Zhang and
    Skolnick 2004); above .5 mostly one fold, about .2 by chance.

    The superposition that scores best is looked for from the whole trace, its halves and its
    quarters. Each round superposes with the weights 1/(1 + (d/d0)²)², which never lowers the
    score: they are the slope of a lower bound that touches it. As in the original program, what
    is found may be a little less than the best.
    """
    length = a.shape[-2]
    d0 = max(0.5, 1.24 * max(length - 15, 0) ** (1 / 3) - 1.8)
    best = torch.zeros_like(a[..., 0, 0])
    index = torch.arange(length, device=a.device)
    for part in (1, 2, 4):
        width = max(3, length // part)
        for start in range(0, length - width + 1, max(1, width // 2)):
            weight = ((index >= start) & (index < start + width)).to(a.dtype).expand(a.shape[:-1])
            for _ in range(rounds):
                far = (superpose(a, b, weight) - b).square().sum(-1) / d0**2
                best = torch.maximum(best, (1 / (1 + far)).mean(-1))
                weight = (1 + far).pow(-2)
    return best


# --- size and contacts ------------------------------------------------------------------------


def radius_of_gyration(ca: Tensor) -> Tensor:
    """(B,) ångström: root mean square distance from the centre, all atoms alike."""
    return (ca - ca.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def contact_probability(distance: Tensor) -> Tensor:
    """(B, L): at s the share of the pairs (i, i+s) that are nearer than 8 Å. No gradient."""
    near = (distance < CONTACT).float()
    return torch.stack(
        [near.diagonal(s, -2, -1).mean(-1) for s in range(distance.shape[-1])], dim=-1
    )


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=-1, eps=1e-6)


def _windows(values: Tensor, reach: int) -> Tensor:
    """Sums of `reach` + 1 neighbours, also of those that stick out at the ends."""
    return F.pad(values, (reach, reach)).unfold(-1, reach + 1, 1).sum(-1)
