"""From a table of CA distances back to a structure, also where no structure has that table."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ray.tasks.proteins import geometry

NEXT_BUT_ONE = (5.0, 7.3)  # Å between CA(i) and CA(i+2): a sharp turn, a stretched strand
CLASH = 3.6  # Å; CA atoms three residues apart or more are no nearer
MARGIN = 0.1  # Å that bounds are kept with, as the last steps leave a little undone
HELIX = math.radians(50)  # the CA dihedral of an alpha helix
NEAR = 6.0  # Å; pairs nearer than this are watched for clashes
HELD_BONDS, HELD_NEXT = 20.0, 10.0  # weights; the largest of a distance asked for is .08
RELAXATION = 1.8  # of 2 at most; a step this much longer, about twice as fast


class Recovered(NamedTuple):
    """Structures, and how far each is from the distances that it was asked to have."""

    ca: Tensor  # (B, L, 3) ångström, centred
    stress: Tensor  # (B,) ångström: root mean square error of the distances that were known
    margin: Tensor  # (B,) how clearly this and not the mirror image was chosen; 0 for a guess


def recover(
    distance: Tensor,
    chirality: Tensor | None = None,
    *,
    limit: float = math.inf,
    steps: int = 160,
) -> Recovered:
    """The structures whose CA distances are nearest to those asked for, relative to their size.

    Classical scaling (Torgerson 1952) gives the start. SMACOF (de Leeuw 1977) then lowers the
    weighted stress, weights 1/d², by steps that need no step size and never diverge. What chains
    have to keep to takes part as distances that are as near to the present ones as the bounds
    allow, first the bonds alone, then all. All peptides are taken for trans. Every row is solved
    by itself, nothing is random, and no gradient flows. A row of 64 residues takes about 1 MB.

    Args:
        distance: (B, L, L) ångström, L of 7 or more. Symmetrised; NaN and infinity are unknown.
        chirality: (B, L-3) as `geometry.chirality` gives it; the larger, the more it counts.
            Without it the structure is preferred to its mirror image whose dihedral angles are
            those of real chains, and no helix is left-handed.
        limit: ångström; an entry of this or more says no more than "at least this".
        steps: of SMACOF, in all.
    """
    with torch.no_grad():
        asked = (distance + distance.mT).double() / 2
        lag = _lag(asked.shape[-1], asked.device)
        low, high = _bounds(lag)
        known = asked < limit
        beyond = (asked >= limit) & math.isfinite(limit)
        # Bounds first: a table of garbage is then one of a chain, or nearly.
        target = torch.minimum(torch.maximum(asked.nan_to_num(0.0), low), high)
        weight = torch.where(known, target.clamp_min(1).pow(-2), 0.0)
        held = torch.where(beyond, target.clamp_min(1).pow(-2), 0.0)
        low = torch.where(beyond, low.clamp_min(limit), low)

        ca = _classical(torch.where(known, target, _detour(target, known, lag)))
        ca = _smacof(ca, target, weight, low, high, held + (lag == 1).double(), steps // 2)
        ca, margin = _right_image(ca, chirality)
        held = held + HELD_BONDS * (lag == 1) + HELD_NEXT * (lag == 2)
        for _ in range(3):  # what has come near in the meantime is held apart as well
            ca = _turned_back(ca, chirality)
            near = torch.minimum(geometry.distances(ca), target) < NEAR
            ca = _smacof(ca, target, weight, low, high, held + (near & (lag > 2)), steps // 6)

        count = (known & (lag > 0)).sum((1, 2)).clamp_min(1)
        error = torch.where(known & (lag > 0), geometry.distances(ca) - asked, 0.0)
        stress = (error.square().sum((1, 2)) / count).sqrt()
        ca = ca - ca.mean(1, keepdim=True)
        return Recovered(ca.float(), stress.float(), margin.float())


def plausibility(ca: Tensor) -> Tensor:
    """(B,) mean log odds of a trace's dihedral angles against those of its mirror image.

    Real ones are drawn as helices at 50° and strands at -170°, with von Mises peaks, over a floor.
    Above 0 for real chains, and the negative of it for their mirror images.
    """
    angle = geometry.dihedrals(ca)
    return (_log_density(angle) - _log_density(-angle)).mean(-1)


def _log_density(angle: Tensor) -> Tensor:
    helix = 2.0 * torch.exp(15 * (torch.cos(angle - HELIX) - 1))
    strand = 0.8 * torch.exp(3 * (torch.cos(angle + math.radians(170)) - 1))
    return torch.log(helix + strand + 0.1)


def _right_image(ca: Tensor, chirality: Tensor | None) -> tuple[Tensor, Tensor]:
    """The structures or their mirror images, and by how much they were preferred."""
    if chirality is None:
        preference = plausibility(ca)
    else:
        preference = (chirality.to(ca.dtype).nan_to_num(0.0) * geometry.chirality(ca)).mean(-1)
    image = ca.clone()
    image[..., 2] *= torch.where(preference < 0, -1.0, 1.0)[:, None]
    return image, preference.abs()


def _turned_back(ca: Tensor, chirality: Tensor | None) -> Tensor:
    """With stretches that turn the wrong way reflected, each in a plane along its own axis.

    Distances with errors leave the way a helix turns open, even where the whole is the right way
    round, and no small step gets from the one to the other.
    """
    now = geometry.chirality(ca)
    if chirality is None:
        # Left-handed helices are unheard of from four runs of four residues on; one turn is not.
        left = ((geometry.dihedrals(ca) + HELIX).abs() < math.radians(25)).to(ca.dtype)
        chirality = now.abs() * F.pad(left.unfold(1, 4, 1).amin(-1), (3, 3)).unfold(1, 4, 1).amax(2)
    agree = F.pad(chirality.to(ca.dtype).nan_to_num(0.0) * now, (3, 3)).unfold(1, 4, 1).mean(-1)
    wrong = (agree < -0.1)[..., None]  # (B, L, 1), of the up to four runs that hold a residue
    # Means over one turn of 3.6 residues lie on a helix's axis.
    ends = [2 * ca[:, :1] - ca[:, 1:3].flip(1), ca, 2 * ca[:, -1:] - ca[:, -3:-1].flip(1)]
    turns = torch.cat(ends, dim=1).unfold(1, 5, 1)  # (B, L, 3, 5)
    axis = (turns * ca.new_tensor([0.5, 1, 1, 1, 0.5])).sum(-1) / 4
    along = axis[:, 2:] - axis[:, :-2]
    along = torch.cat([along[:, :1], along, along[:, -1:]], dim=1)
    normal = torch.linalg.cross(along, torch.ones_like(along))  # one direction in a straight helix
    normal = F.normalize(normal, dim=-1)
    across = ((ca - axis) * normal).sum(-1, keepdim=True)
    return torch.where(wrong, ca - 2 * across * normal, ca)


def _lag(length: int, device: torch.device) -> Tensor:
    index = torch.arange(length, device=device)
    return (index[:, None] - index).abs()


def _bounds(lag: Tensor) -> tuple[Tensor, Tensor]:
    """(L, L) each: the least and the greatest distance that a chain has."""
    low = torch.full(lag.shape, CLASH + MARGIN, dtype=torch.float64, device=lag.device)
    high = geometry.BOND * lag.double()
    low[lag == 0] = 0
    low[lag == 1] = geometry.BOND
    low[lag == 2], high[lag == 2] = NEXT_BUT_ONE[0] + MARGIN, NEXT_BUT_ONE[1] - MARGIN
    return low, high


def _detour(target: Tensor, known: Tensor, lag: Tensor) -> Tensor:
    """The shortest way along known distances (Floyd and Warshall), as in Isomap."""
    way = torch.where(known | (lag <= 1), target, math.inf)
    for k in range(len(lag)):
        way = torch.minimum(way, way[:, :, k : k + 1] + way[:, k : k + 1, :])
    return way


def _classical(target: Tensor) -> Tensor:
    """(B, L, 3): coordinates along the three greatest eigenvectors of the Gram matrix."""
    squared = target.square()
    rows = squared.mean(-1, keepdim=True)
    gram = -(squared - rows - rows.mT + rows.mean(-2, keepdim=True)) / 2
    value, vector = torch.linalg.eigh(gram)
    # A map that is flat or worse still gets some depth: SMACOF never leaves a plane.
    spread = torch.maximum(value[:, -3:], value[:, -1:] * 1e-4).clamp_min(1e-6)
    return vector[:, :, -3:] * spread.sqrt()[:, None, :]


def _smacof(
    ca: Tensor,
    target: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    held: Tensor,
    steps: int,
) -> Tensor:
    """Lowers Σ weight·(d - target)² + held·(d - the nearest of [low, high])².

    Each step solves for the minimum of a quadratic function that lies above this one and touches
    it where we stand.
    """
    both = weight + held
    laplacian = torch.diag_embed(both.sum(-1)) - both
    # Forces sum to 0, so this constant, which makes the matrix regular, moves nothing.
    inverse = torch.linalg.inv(laplacian + both.mean((1, 2))[:, None, None]).float()
    x = ca.float()
    pull = (weight * target).float()
    low, high, held, both = low.float(), high.float(), held.float(), both.float()
    for step in range(steps):
        difference = x.mT[:, :, :, None] - x.mT[:, :, None, :]  # (B, 3, L, L)
        d = difference.square().sum(1).sqrt_()
        wanted = torch.clamp(d, low, high).mul_(held).add_(pull)
        wanted.div_(d.clamp_min_(1e-3)).sub_(both)
        force = (difference * wanted[:, None]).sum(-1)  # (B, 3, L); 0 where all is as wanted
        longer = RELAXATION if step + 1 < steps else 1.0
        x = x + longer * (inverse @ force.mT)
    return x.to(ca.dtype)
