"""Differentiable augmentation of medical images: shift, brightness, contrast, cutout, flips.

Real and generated images pass through the same changes before the critic, so the generator learns
the images and not the changes (Karras et al. 2020; Zhao et al. 2020). Each row's changes are drawn
from its own key. No turn and, unless asked for, no flip: in a chest film the sides have meaning.
Only what calibration looks at (`retaken`) is turned, a little.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ray import noise

SHIFT = 0.125  # share of the side, at most


def augment(image: Tensor, row: Tensor, strength: float, *, flip: bool, stream: str) -> Tensor:
    """(B, C, S, S) -> the same shape; each change happens to a row with probability `strength`."""
    if strength <= 0:
        return image
    draws = noise.uniform(row, stream, (10,))  # (B, 10)
    happens = (draws[:, :4] < strength).float()
    spread = 2 * draws[:, 4:] - 1  # (B, 6) in [-1, 1)
    brightness = happens[:, 0] * 0.2 * spread[:, 0]
    contrast = 1 + happens[:, 1] * 0.25 * spread[:, 1]
    image = image * contrast[:, None, None, None] + brightness[:, None, None, None]
    shift = happens[:, 2, None] * SHIFT * spread[:, 2:4]
    mirror = torch.ones_like(draws[:, 0])
    if flip:
        mirror = torch.where(noise.uniform(row, stream + " flip", ()) < 0.5 * strength, -1.0, 1.0)
    image = _move(image, shift, mirror)
    return image * _keep(image.shape[-1], happens[:, 3], spread[:, 4:6])[:, None].to(image.dtype)


def _move(image: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Shift by whole pixels (the edge repeated) and mirror, as products with selecting matrices:
    many times faster backwards than indexing, and, unlike grid_sample, twice differentiable."""
    side = image.shape[-1]
    base = torch.arange(side, device=image.device)
    pixels = torch.round(shift * side).long()  # (B, 2)
    rows = (base[None] + pixels[:, :1]).clamp(0, side - 1)
    columns = (base[None] + pixels[:, 1:]).clamp(0, side - 1)
    columns = torch.where(mirror[:, None] < 0, side - 1 - columns, columns)
    pick_rows = F.one_hot(rows, side).to(image.dtype)[:, None]  # (B, 1, S, S)
    pick_columns = F.one_hot(columns, side).to(image.dtype)[:, None]
    return pick_rows @ image @ pick_columns.transpose(2, 3)


def _keep(side: int, happens: Tensor, centre: Tensor) -> Tensor:
    """(B, S, S): 0 in a square of a quarter of the side where it happens, else 1."""
    place = torch.linspace(-1, 1, side, device=centre.device)
    inside = (place[None, None] - centre[:, :, None]).abs() < 0.25  # (B, 2, S)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return 1 - hole.float() * happens[:, None, None]


def pad_crop(image: Tensor, row: Tensor, *, flip: bool) -> Tensor:
    """The recogniser's own mild augmentation: shifts of up to a tenth, and flips where legal."""
    draws = 2 * noise.uniform(row, "recogniser", (3,)) - 1
    mirror = draws[:, 2] if flip else torch.ones_like(draws[:, 2])
    return _move(image, 0.1 * draws[:, :2], mirror)


def retaken(image: Tensor, row: Tensor) -> Tensor:
    """(B, C, S, S) as other devices and hands might have taken the images: turned by up to 10
    degrees, 15 % nearer or farther, on a film that is steeper or flatter (a gamma of .6 to 1.6).

    No recogniser here is trained on these, so they show how sure it is of what is new to it.
    """
    draws = 2 * noise.uniform(row, "retaken", (3,)) - 1
    angle, scale = draws[:, 0] * math.radians(10), torch.exp(0.15 * draws[:, 1])
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    zero = torch.zeros_like(angle)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    gamma = torch.exp(0.5 * draws[:, 2])[:, None, None, None]
    return 2 * ((image + 1) / 2).clamp(1e-6, 1) ** gamma - 1
