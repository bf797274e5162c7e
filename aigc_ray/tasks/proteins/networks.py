"""The networks of protein backbones: an editor of walks, a critic and a recogniser of maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray.blocks import Embedding, Residual, low_precision
from aigc_ray.tasks.proteins import geometry
from aigc_ray.tasks.proteins.structures import WINDOW
from aigc_ray.tasks.proteins.walks import TURNS, angles, apart, built

NOISE = 64  # numbers that a walk is edited by
PATCH, FINE = 8, 4  # residues a side of what critic and recogniser see at once of a map
REACH = 8  # residues up and down the chain that a residue's own surroundings hold
BLOCKS = 3
ROW = (1, 5)
SHARES = 16  # hidden units between the shares of states and the class
ANCHORS = 8  # residues to which the distance of each is seen by the generator
ROUNDS = 2  # of its edits
BENT = 0.35  # radians by which an angle is edited, at most
UNIT = 0.2  # of the edits: one step of the optimiser moves them by so much less
HELIX, STRAND = math.radians(50), math.radians(-170)  # dihedral angles of four CA atoms
HELD = 0.9  # share of an edit that regular structure resists


class Generator(nn.Module):
    """(angles, dihedrals (B, TURNS), noise (B, 64), class (B,)) -> trace (B, 64, 3): an editor.

    It begins with a walk and turns residues until the chain is as compact, and its parts lie beside
    each other, as in real ones; each round sees where the one before has put them. Helices and
    strands are stiff, it is the turns between them that give. Being made of angles, whatever it
    makes has a map that a structure has, with right bonds, and the hand of its helices.
    """

    def __init__(self, classes: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.embed = Embedding(classes, NOISE)
        self.read = nn.Conv2d(3 + ANCHORS, width, ROW, padding=(0, 2))
        self.place = nn.Parameter(torch.randn(width, 1, TURNS) * 0.1)
        self.map = nn.Linear(TURNS, TURNS)  # what lies far along the chain
        self.tell = nn.ModuleList(nn.Linear(2 * NOISE, width) for _ in range(2 * BLOCKS))
        self.stages = nn.ModuleList(
            Residual(width, 2 * BLOCKS, kernel=ROW) for _ in range(2 * BLOCKS)
        )
        self.edit = nn.Conv2d(width, 2, 1)
        nn.init.zeros_(self.edit.weight)
        nn.init.zeros_(self.edit.bias)  # type: ignore[arg-type]

    def forward(self, angle: Tensor, dihedral: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        known = torch.ones_like(label, dtype=torch.bool)
        wish = torch.cat([noise, self.embed(label, known)], 1)
        free = 1 - HELD * regular(dihedral)[:, None]
        for _ in range(ROUNDS):
            trace = built(angle, dihedral)
            edit = free * self._edit(angle, dihedral, trace, wish)
            angle = angle + BENT * torch.tanh(edit[:, 0])
            dihedral = dihedral + edit[:, 1]
        return built(angle, dihedral)

    def _edit(self, angle: Tensor, dihedral: Tensor, trace: Tensor, wish: Tensor) -> Tensor:
        """(B, 2, TURNS) by how much angles and dihedrals are to change."""
        step = WINDOW // ANCHORS
        far = geometry.scaled(
            (trace[:, 2:-1, None] - trace[:, None, step // 2 :: step]).norm(dim=3) + 1e-3
        )
        seen = torch.stack([angle - math.pi / 2, dihedral.cos(), dihedral.sin()], 1)
        seen = torch.cat([seen, far.transpose(1, 2) - 0.5], 1)
        with low_precision(self.bf16, angle.device):
            x = self.read(seen[:, :, None]) + self.place
            for number, (tell, stage) in enumerate(zip(self.tell, self.stages, strict=True)):
                if number == BLOCKS:
                    x = x + self.map(x)
                x = stage(x + tell(wish)[:, :, None, None])
        return UNIT * self.edit(x.float())[:, :, 0]


def untangled(trace: Tensor) -> Tensor:
    """Traces (B, 64, 3) whose residues do not overlap; helices and strands are stiff."""
    angle, dihedral = angles(trace)
    return apart(angle, dihedral, 1 - HELD * regular(dihedral))


def regular(dihedral: Tensor) -> Tensor:
    """(B, TURNS) from 0 to 1: how much a turn is one of a helix or a strand, as two turns to either
    side are."""
    helix = torch.exp(15 * (torch.cos(dihedral - HELIX) - 1))
    strand = torch.exp(3 * (torch.cos(dihedral - STRAND) - 1))
    return torch.maximum(_lasting(helix), _lasting(strand))


def _lasting(likely: Tensor) -> Tensor:
    """The geometric mean with two neighbours to either side; the ends repeat."""
    padded = F.pad(likely.clamp(min=1e-6).log(), (2, 2), mode="replicate")
    return F.avg_pool1d(padded[:, None], 5, 1)[:, 0].exp()


class Unedited(nn.Module):
    """As the generator, without an edit: what the adversarial part adds is told beside it."""

    def forward(self, angle: Tensor, dihedral: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        return built(angle, dihedral)


class _Map(nn.Module):
    """Image (B, 2, 64, 64) -> (B, width, side, side) by patches and residual stages."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(2, width, patch, patch)
        side = WINDOW // patch
        self.place = nn.Parameter(torch.randn(width, side, side) * 0.1)
        self.stages = nn.ModuleList(Residual(width, BLOCKS) for _ in range(BLOCKS))

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.read(image.contiguous(memory_format=torch.channels_last)) + self.place
        for stage in self.stages:
            x = stage(x)
        return x


class Critic(nn.Module):
    """(image (B, 2, 64, 64), class (B,)) -> how real the pair looks (B,), and which class it shows
    (B, K): by the whole map, and by each residue's surroundings along the chain.

    No layer lets one row see another, so one gradient serves the penalties of all rows; the last
    product has no bias, since its true gradient under a relativistic loss is zero.
    """

    def __init__(self, classes: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.map = _Map(width, PATCH)
        self.near = nn.Conv2d(BAND, width, (1, 1))
        self.along = nn.ModuleList(Residual(width, 2, kernel=ROW) for _ in range(2))
        side = WINDOW // PATCH
        self.gather = nn.Parameter(torch.randn(width, side, side) / side**2)
        self.gather_along = nn.Parameter(torch.randn(width, 1, WINDOW) / WINDOW)
        self.features = nn.Linear(4 * width, 2 * width, bias=False)
        self.embed = Embedding(classes, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with low_precision(self.bf16, image.device):
            x = self.map(image)
            y = self.near(band(image))
            for stage in self.along:
                y = stage(y)
        x, y = x.float(), y.float()
        seen = [
            (x * self.gather).sum((2, 3)),
            F.leaky_relu(x, 0.2).mean((2, 3)),
            (y * self.gather_along).sum((2, 3)),
            F.leaky_relu(y, 0.2).mean((2, 3)),
        ]
        found = self.features(torch.cat(seen, 1))
        known = torch.ones_like(label, dtype=torch.bool)
        logits = (found * self.embed(label, known)).sum(1) / math.sqrt(found.shape[1])
        return logits, self.head(F.leaky_relu(found, 0.2))


class Recogniser(nn.Module):
    """Image (B, 2, 64, 64) -> what each residue is part of, what the window is made of, and whether
    it could be a protein's.

    The class is told from nothing but the shares of states: it is defined by them, and whatever
    else of a few hundred families is shown, is learned by heart.
    """

    def __init__(self, classes: int, states: int, width: int, dropout: float) -> None:
        super().__init__()
        self.map = _Map(width, FINE)
        # A bond of another length is a hundredth in the unit of the picture, and tells most.
        self.norm = nn.BatchNorm2d(BAND + PARTNERS)
        self.near = nn.Conv2d(BAND + PARTNERS, width, (1, 1))
        self.along = nn.ModuleList(Residual(width, 4, kernel=ROW) for _ in range(4))
        self.state = nn.Linear(width, states)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(4 * width, 2 * width)
        self.head = nn.Sequential(nn.Linear(states, SHARES), nn.GELU(), nn.Linear(SHARES, classes))
        self.real = nn.Linear(2 * width, 1)

    def along_chain(self, image: Tensor) -> Tensor:
        """(B, 64, width) of each residue."""
        x = self.near(self.norm(torch.cat([band(image), partners(image)], 1)))
        for stage in self.along:
            x = stage(x)
        return x.float()[:, :, 0].transpose(1, 2)

    def features(self, image: Tensor, along: Tensor) -> Tensor:
        """(B, 2 * width) of the window."""
        x = F.leaky_relu(self.map(image).float(), 0.2)
        seen = [x.mean((2, 3)), x.amax((2, 3)), along.mean(1), along.amax(1)]
        return F.gelu(self.hidden(torch.cat(seen, 1)))

    def realness(self, image: Tensor, along: Tensor) -> Tensor:
        """(B,) logits of being real."""
        found: Tensor = self.real(self.dropout(self.features(image, along)))[:, 0]
        return found

    def kind(self, state: Tensor) -> Tensor:
        """(B, K) logits of classes, of logits of states (B, 64, 3)."""
        found: Tensor = self.head(state.softmax(2).mean(1) * SHARES)
        return found


BAND = 2 * REACH + 4  # channels of `band`
PARTNERS = 4  # channels of `partners`


def band(image: Tensor) -> Tensor:
    """(B, BAND, 1, 64): distances of each residue to those up to eight before and after it, and
    which way the chain turns there; 0 beyond the ends."""
    rows = []
    for lag in range(1, REACH + 1):
        along = image[:, 0].diagonal(lag, -2, -1)
        rows += [F.pad(along, (lag, 0)), F.pad(along, (0, lag))]
    turn = image[:, 1].diagonal(3, -2, -1)
    rows += [F.pad(turn, (before, 3 - before)) for before in range(4)]
    return torch.stack(rows, 1)[:, :, None].contiguous(memory_format=torch.channels_last)


def partners(image: Tensor) -> Tensor:
    """(B, PARTNERS, 1, 64): the nearest residues that are not neighbours in the chain, and how many
    there are within 6.5 and 8 Å."""
    index = torch.arange(WINDOW, device=image.device)
    apart = (index[:, None] - index).abs() > 4
    distance = torch.where(apart, image[:, 0], torch.full_like(image[:, 0], 2.0))
    near = distance.topk(2, largest=False).values
    within = [
        torch.sigmoid((geometry.scaled(image.new_tensor(limit)) - distance) * 60).sum(2) / 4
        for limit in (6.5, 8.0)
    ]
    return torch.stack([near[..., 0], near[..., 1], *within], 1)[:, :, None]
