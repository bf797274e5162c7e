"""Random numbers that belong to a row, not to a process.

Every number is a hash of (row key, stream, position). So a row draws the same noise whatever the
number of workers, whatever shares its batch, and whether a run was interrupted or not; there is no
generator state to save. The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators", OOPSLA).
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9e3779b97f4a7c15 as a signed 64-bit number
_MIX1 = -0x40A7B892E31B1A47  # 0xbf58476d1ce4e5b9
_MIX2 = -0x6B2FB644ECCEEE15  # 0x94d049bb133111eb


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def keys(seed: int, number: Tensor) -> Tensor:
    """Row keys for the samples `number` (B,) of a run or request with this seed."""
    return _mix(_mix(number.to(torch.int64) * _GAMMA + _GAMMA) + seed)


def bits(row: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) int64, all 64 bits random; one stream name per use within a step."""
    count = math.prod(shape)
    position = torch.arange(1, count + 1, device=row.device, dtype=torch.int64)
    start = _mix(row.to(torch.int64) ^ (zlib.crc32(stream.encode()) * 0x1_0000_0001))
    return _mix(start[:, None] + position * _GAMMA).reshape(len(row), *shape)


def uniform(row: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 in [0, 1)."""
    return _shift_right(bits(row, stream, shape), 40).to(torch.float32) * 2.0**-24


def normal(row: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32, standard normal, by Box and Muller's transform."""
    pairs = uniform(row, stream, (*shape, 2))
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[..., 0]))
    return radius * torch.cos(2.0 * math.pi * pairs[..., 1])


def pick(logits: Tensor, random: Tensor) -> Tensor:
    """(B,) which of C candidates each row takes: a draw by the softmax of logits (B, C), as the
    largest of logits with Gumbel's noise is one.

    Args:
        random: (B, C) in [0, 1).
    """
    return (logits - torch.log(-torch.log(random.clamp(min=2.0**-25)))).argmax(1)
