"""Building blocks that the image-like networks of several tasks share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bf16_pays(device: str) -> bool:
    """Whether this device multiplies in bfloat16 faster than in float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    # Without these instructions a CPU emulates bfloat16 and is slower than in float32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def low_precision(enabled: bool, device: torch.device) -> Iterator[None]:
    """bfloat16 in the convolutions and products inside, where `enabled`."""
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
        yield


class Embedding(nn.Module):
    """A class, or a set of labels, as a vector; an unknown one as a learned vector."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(classes, width))
        self.unknown = nn.Parameter(torch.zeros(width))

    def forward(self, label: Tensor, known: Tensor) -> Tensor:
        if label.dtype == torch.int64:
            chosen = F.one_hot(label, len(self.table)).to(self.table.dtype) @ self.table
        else:
            chosen = label.to(self.table.dtype) @ self.table
        return torch.where(known[:, None], chosen, self.unknown)


class Residual(nn.Module):
    """x + W3(act(W2(act(W1 x)))): 1x1 expand by two, grouped 3x3, 1x1, no normalisation.

    After R3GAN (Huang et al. 2024). The last convolution starts at zero, so a deep stack starts as
    the identity; the others are scaled by depth^(-1/4).
    """

    def __init__(
        self, width: int, depth: int, *, group: int = 16, kernel: tuple[int, int] = (3, 3)
    ) -> None:
        super().__init__()
        inner = 2 * width
        groups = max(1, inner // group)
        self.expand = convolution(width, inner, (1, 1), depth=depth, bias=True)
        self.mix = convolution(inner, inner, kernel, depth=depth, groups=groups, bias=True)
        self.reduce = nn.Conv2d(inner, width, 1, bias=False)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        # In place: the fewer large tensors, the better, on a CPU above all.
        y = F.leaky_relu(self.expand(x), 0.2, inplace=True)
        y = F.leaky_relu(self.mix(y), 0.2, inplace=True)
        return x + self.reduce(y)


def convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    *,
    depth: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution, normal with fan-in variance and leaky ReLU's gain, less in deep stacks."""
    height, width = kernel
    around = height // 2, width // 2
    layer = nn.Conv2d(inputs, outputs, kernel, padding=around, groups=groups, bias=bias)
    gain = math.sqrt(2 / (1 + 0.2**2)) * depth**-0.25
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs // groups * height * width))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def smooth_up(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear: zeros inserted and filtered by [1, 3, 3, 1]."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def smooth_down(x: Tensor) -> Tensor:
    """Half the height and width: the mean of each 2x2 square. (avg_pool2d gives it too, but its
    second derivative adds zeros in another layout, which slow down all that follows.)"""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) for small images: 3x3 stem, no pooling before the stages.

    From 112 pixels on, the stem halves the image twice, as the original does.
    Its batch normalisation sees the rows of its own worker only; the loop averages the running
    statistics over the workers.
    """

    def __init__(self, channels: int, outputs: int, *, width: int = 64, size: int = 28) -> None:
        super().__init__()
        large = size >= 112
        self.stem = nn.Conv2d(channels, width, 3, 2 if large else 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_Basic(a, b, 1 if stage == 0 else 2), _Basic(b, b, 1))
                for stage, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.head = nn.Linear(8 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """(B, 8 * width) means of the last feature maps."""
        # A convolution of one channel forgets the layout, and the others would run at half speed.
        x = self.stem(x).contiguous(memory_format=torch.channels_last)
        x = self.pool(F.relu(self.norm(x)))
        return self.stages(x).float().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))
