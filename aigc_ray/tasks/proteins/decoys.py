"""Traces that no protein has, from which the recogniser learns what plausible means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ray import noise
from aigc_ray.tasks.proteins import geometry
from aigc_ray.tasks.proteins.structures import WINDOW

REACH = 3.0  # residues over which the errors of neighbours are alike
HALF = WINDOW // 2


def shaken(trace: Tensor, row: Tensor, sigma: Tensor | float, stream: str) -> Tensor:
    """With independent errors of every coordinate, of `sigma` (B,) angstrom."""
    spread = torch.as_tensor(sigma, dtype=trace.dtype, device=trace.device).reshape(-1, 1, 1)
    return trace + spread * noise.normal(row, stream, (WINDOW, 3))


def bent(trace: Tensor, row: Tensor, sigma: Tensor | float, stream: str) -> Tensor:
    """With errors of `sigma` (B,) angstrom a coordinate that neighbours in the chain share."""
    away = torch.arange(-8, 9, device=trace.device)
    kernel = torch.exp(-0.5 * (away / REACH) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()  # so that the errors keep their size
    raw = noise.normal(row, stream, (3, 1, WINDOW + 16)).flatten(0, 1)
    smooth = F.conv1d(raw, kernel[None, None]).view(len(trace), 3, WINDOW)
    spread = torch.as_tensor(sigma, dtype=trace.dtype, device=trace.device).reshape(-1, 1, 1)
    return trace + spread * smooth.transpose(1, 2)


def joined(trace: Tensor, other: Tensor) -> Tensor:
    """The first half of each window (B, 64, 3) and the second of another: joined so that the bond,
    the angles and the dihedrals at the seam are the other's own."""
    seam = slice(HALF - 3, HALF)
    # The other's residues before its second half are laid on the first half's last three.
    moved = geometry.superpose(other, _beside(trace[:, seam], other), weight=_weights(trace, seam))
    return torch.cat([trace[:, :HALF], moved[:, HALF:]], 1)


def _beside(part: Tensor, other: Tensor) -> Tensor:
    found = other.clone()
    found[:, HALF - 3 : HALF] = part
    return found


def _weights(trace: Tensor, seam: slice) -> Tensor:
    found = torch.full_like(trace[..., 0], 1e-9)
    found[:, seam] = 1
    return found


def decoys(trace: Tensor, other: Tensor, row: Tensor, stream: str = "decoys") -> Tensor:
    """One of each window (B, 64, 3): about every third bent by 1 to 2 angstrom, which is easily
    told, the rest joined to another window (B, 64, 3)."""
    random = noise.uniform(row, f"{stream} kind", (2,))
    is_bent = (random[:, 0] < 1 / 3)[:, None, None]
    return torch.where(is_bent, bent(trace, row, 1 + random[:, 1], stream), joined(trace, other))
