"""What plain statistics say of backbones: a Markov chain over the angles of consecutive residues.

Its walks have the helices, strands and turns of real chains, with their lengths and their hand,
and nothing of how these lie beside each other. The generator starts from such a walk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aigc_ray.tasks.proteins import geometry
from aigc_ray.tasks.proteins.structures import WINDOW

SHAPES = 48  # kinds of a turn from one residue to the next
ROUNDS = 20  # of k-means
TURNS = WINDOW - 3  # dihedral angles of a window
PRIOR = 5.0  # turns that a shorter memory counts for
SEEN = 1_000  # windows of which it is told how rare their turns are, at most
RARE = 0.05  # share of the pairs of turns of real chains that are rarer than what is usual
LEAST = 0.02  # radians of spread in a kind, at least
NEAREST = 3.8  # angstrom that residues three apart or more are moved away from each other to
PUSHES, MOST = 24, 0.1  # steps of that, and radians of a turn in a step, at most
BENDS = 0.3  # how much an angle gives where a dihedral gives 1


class Walks(nn.Module):
    """Kinds of turns, and which follows which; nothing in it is trained by gradients."""

    centre: Tensor  # (SHAPES, 2) radians: the angle at the second last residue, the dihedral
    spread: Tensor  # (SHAPES, 2, 2) lower triangle of the covariance
    first: Tensor  # (K, SHAPES, SHAPES) counts of the first two kinds
    after: Tensor  # (K, SHAPES, SHAPES, SHAPES) counts of a kind after the two before
    usual: Tensor  # () log density that all but a few pairs of turns of real chains have

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(SHAPES, 2))
        self.register_buffer("spread", torch.eye(2).repeat(SHAPES, 1, 1))
        self.register_buffer("first", torch.ones(classes, SHAPES, SHAPES))
        self.register_buffer("after", torch.ones(classes, SHAPES, SHAPES, SHAPES))
        self.register_buffer("usual", torch.zeros(()))

    @torch.no_grad()
    def fit(self, trace: Tensor, label: Tensor) -> None:
        """To windows (N, 64, 3) of classes (N,)."""
        turns = torch.stack([*angles(trace)], 2).double()[:, :, :2]  # (N, TURNS, 2)
        kind = self._kinds(turns.flatten(0, 1)).view(turns.shape[:2])
        for number in range(len(self.first)):
            here = kind[label == number]
            begin = here[:, 0] * SHAPES + here[:, 1]
            self.first[number] = _counted(begin, SHAPES**2).view(SHAPES, SHAPES).to(self.first)
            triple = (here[:, :-2] * SHAPES + here[:, 1:-1]) * SHAPES + here[:, 2:]
            counts = _counted(triple.flatten(), SHAPES**3)
            self.after[number] = counts.view(SHAPES, SHAPES, SHAPES).to(self.after)

        density = self._density(turns[:SEEN])
        self.usual.copy_(density.flatten().quantile(RARE, interpolation="lower"))

    def _density(self, turns: Tensor) -> Tensor:
        """(N, TURNS-1) log density of each turn of (N, TURNS, 2) together with the next one, which
        between them place a residue's φ and ψ."""
        away = turns[:, :, None].to(self.centre) - self.centre
        around = torch.remainder(away[..., 1] + math.pi, 2 * math.pi) - math.pi
        first = away[..., 0] / self.spread[:, 0, 0]
        second = (around - self.spread[:, 1, 0] * first) / self.spread[:, 1, 1]
        size = self.spread[:, 0, 0] * self.spread[:, 1, 1]
        log = -0.5 * (first.square() + second.square()) - size.log()  # (N, TURNS, SHAPES)
        most = log.amax(2, keepdim=True)
        near = (log - most).exp()
        pairs = self.after.sum((0, 1)) + 1 / SHAPES  # no pair is impossible
        both = ((near[:, :-1] @ (pairs / pairs.sum())) * near[:, 1:]).sum(2)
        return both.log() + most[:, :-1, 0] + most[:, 1:, 0]

    def strange(self, trace: Tensor) -> Tensor:
        """(B,) by how much pairs of turns are rarer than all but a few of real chains, the mean
        over a trace (B, 64, 3); differentiable."""
        density = self._density(torch.stack([*angles(trace)], 2))
        return (self.usual - density).clamp(min=0).mean(1)

    def _kinds(self, turns: Tensor) -> Tensor:
        """(M,) by k-means on the torus and the angle; fits centre and spread."""
        space = torch.stack(
            [turns[:, 0] * 1.5, turns[:, 1].cos(), turns[:, 1].sin()], 1
        )  # an angle of 1 rad weighs as much as a dihedral of 1.5
        order = torch.argsort(turns[:, 1] * 10 + turns[:, 0], stable=True)
        centre = space[order[torch.linspace(0, len(space) - 1, SHAPES).long()]].clone()
        kind = torch.zeros(len(space), dtype=torch.int64)
        for _ in range(ROUNDS):
            kind = torch.cat([torch.cdist(part, centre).argmin(1) for part in space.split(20_000)])
            count = _counted(kind, SHAPES)
            total = torch.zeros_like(centre).index_add_(0, kind, space)
            centre = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), centre)
        middle = torch.stack([centre[:, 0] / 1.5, torch.atan2(centre[:, 2], centre[:, 1])], 1)
        away = turns - middle[kind]
        away[:, 1] = torch.remainder(away[:, 1] + math.pi, 2 * math.pi) - math.pi
        for number in range(SHAPES):
            here = away[kind == number]
            covariance = torch.eye(2).double() * LEAST**2
            if len(here) > 2:
                covariance += here.T @ here / len(here)
            self.spread[number] = torch.linalg.cholesky(covariance).to(self.spread)
        self.centre.copy_(middle)
        return kind

    @torch.no_grad()
    def say(self, label: Tensor, random: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """The angles (B, TURNS) and dihedrals (B, TURNS) of walks of these classes (B,).

        Args:
            random: (B, TURNS) from 0 to 1.
            normal: (B, TURNS, 2) standard normal.
        """
        every = self.after.sum(0)
        pairs = every.sum(0)  # (S, S): a kind after the one before
        pairs = (pairs + PRIOR / SHAPES) / (pairs.sum(1, keepdim=True) + PRIOR)
        own = self.after.sum(1)  # (K, S, S)
        own = (own + PRIOR * pairs) / (own.sum(2, keepdim=True) + PRIOR)
        # A class that was not among the rows begins as all do.
        begin = (self.first + 1e-3 * self.first.sum(0)).flatten(1).cumsum(1)[label]
        start = (random[:, :1] * begin[:, -1:] >= begin).sum(1).clamp(max=SHAPES**2 - 1)
        kinds = [start // SHAPES, start % SHAPES]
        for place in range(2, TURNS):
            counts = self.after[label, kinds[-2], kinds[-1]]
            share = counts + PRIOR * own[label, kinds[-1]]
            total = share.cumsum(1)
            chosen = (random[:, place : place + 1] * total[:, -1:] >= total).sum(1)
            kinds.append(chosen.clamp(max=SHAPES - 1))
        kind = torch.stack(kinds, 1)
        found = self.centre[kind] + (self.spread[kind] @ normal[..., None])[..., 0]
        return found[..., 0], found[..., 1]


def angles(trace: Tensor) -> tuple[Tensor, Tensor]:
    """(B, TURNS) the angle at the third and the dihedral of four consecutive atoms, radians."""
    back = trace[:, 1:-2] - trace[:, 2:-1]
    ahead = trace[:, 3:] - trace[:, 2:-1]
    cosine = (back * ahead).sum(2) / (back.norm(dim=2) * ahead.norm(dim=2)).clamp(min=1e-6)
    return cosine.clamp(-1, 1).acos(), geometry.dihedrals(trace)


def built(angle: Tensor, dihedral: Tensor) -> Tensor:
    """(B, 64, 3) traces with these angles and dihedrals (B, TURNS), all bonds 3.8 Å."""
    zero = torch.zeros_like(angle[:, 0])
    wide = torch.full_like(zero, math.radians(110))
    a = torch.stack([zero, zero, zero], 1)
    b = torch.stack([zero + geometry.BOND, zero, zero], 1)
    c = b + geometry.BOND * torch.stack([-wide.cos(), wide.sin(), zero], 1)
    atoms = [a, b, c]
    for place in range(TURNS):
        a, b, c = atoms[-3:]
        atoms.append(geometry.place(a, b, c, geometry.BOND, angle[:, place], dihedral[:, place]))
    return torch.stack(atoms, 1)


def apart(angle: Tensor, dihedral: Tensor, free: Tensor) -> Tensor:
    """(B, 64, 3) traces with these angles and dihedrals (B, TURNS), turned as little as may be
    until their residues do not overlap.

    The squared overlap is lowered along its gradient in the angles, with the step of Polyak (1987),
    who knows that 0 is to be reached. What does not overlap stays as it is.

    Args:
        free: (B, TURNS) from 0 to 1, how easily a turn gives.
    """
    index = torch.arange(WINDOW, device=angle.device)
    distant = (index[:, None] - index).abs() >= 3
    ca = built(angle, dihedral)
    for _ in range(PUSHES):
        between = ca[:, :, None] - ca[:, None]
        distance = between.norm(dim=3).clamp(min=1e-3)
        overlap = torch.where(distant, (NEAREST - distance).clamp(min=0), 0.0)
        if not overlap.any():
            break
        force = ((overlap / distance)[..., None] * between).sum(2)  # (B, 64, 3)
        # A turn moves all that is behind it: its gradient is a torque about its axis.
        behind = torch.cat([torch.linalg.cross(ca, force), force], 2)
        torque, push = behind.flip(1).cumsum(1).flip(1)[:, 3:].split(3, 2)
        about = ca[:, 2:-1]
        torque = torque - torch.linalg.cross(about, push)
        bond = about - ca[:, 1:-2]
        across = torch.linalg.cross(-bond, ca[:, 3:] - about)
        turn = free * (bond * torque).sum(2) / bond.norm(dim=2)
        bend = BENDS * free * (across * torque).sum(2) / across.norm(dim=2).clamp(min=1e-3)
        square = (turn.square() + bend.square()).sum(1).clamp(min=1e-9)
        largest = torch.maximum(turn.abs(), bend.abs()).amax(1).clamp(min=1e-9)
        step = torch.minimum(overlap.square().sum((1, 2)) / 2 / square, MOST / largest)[:, None]
        dihedral, angle = dihedral + step * turn, angle + step * bend
        ca = built(angle, dihedral)
    return ca


def _counted(index: Tensor, size: int) -> Tensor:
    return torch.bincount(index, minlength=size).double()
