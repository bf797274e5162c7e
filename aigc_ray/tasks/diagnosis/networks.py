"""The generator, the critic and the recogniser of medical images."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray.blocks import (
    Embedding,
    Residual,
    convolution,
    low_precision,
    smooth_down,
    smooth_up,
)

NOISE = 64  # numbers that a generated image is made from
SIZES = tuple(n for n in range(28, 257) if n % (1 << (n.bit_length() - 3)) == 0)
_WIDTHS = (128, 96, 64, 48, 32, 32, 32)  # from the coarsest stage on


def base_of(size: int) -> int:
    """The side of the coarsest feature map."""
    while size >= 8:
        size //= 2
    return size


class Components(nn.Module):
    """(noise (B, 64), label) -> (B, C, S, S): the mean of a class, and its principal components
    times the noise, at no more than 48 pixels a side. Noise alone, until it is fitted.

    A generator that starts from them is a Gaussian sampler of each class, which has the variety of
    the real images; what is not Gaussian is left to its other layers and to the critic. With no
    classes, as where an image has several labels, one sampler serves all.
    """

    UNIT = 0.05  # of the weights: one step of the optimiser moves them by so much less

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.size = self.side = size
        while self.side > 48:
            self.side //= 2
        pixels = channels * self.side**2
        # The last row is of images whose class is not known.
        self.mean = nn.Parameter(torch.zeros(classes + 1, pixels))
        self.axes = nn.Parameter(torch.randn(classes + 1, NOISE, pixels))

    def forward(self, noise: Tensor, label: Tensor, known: Tensor) -> Tensor:
        chosen = self._chosen(label, known).to(noise.dtype)
        scores = (chosen[:, :, None] * noise[:, None]).flatten(1)
        flat = self.UNIT * (chosen @ self.mean + scores @ self.axes.flatten(0, 1))
        image = flat.view(len(noise), -1, self.side, self.side)
        if self.side < self.size:
            scale = self.size // self.side
            image = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        return image

    def _chosen(self, label: Tensor, known: Tensor) -> Tensor:
        """(B, K + 1) of zeros and a one."""
        last = torch.full_like(known, len(self.mean) - 1, dtype=torch.int64)
        chosen = torch.where(known, label, last) if len(self.mean) > 1 else last
        return F.one_hot(chosen, len(self.mean))

    @torch.no_grad()
    def fit(self, image: Tensor, label: Tensor, known: Tensor) -> None:
        """To images (N, C, side, side) from -1 to 1, before the last tanh."""
        # In float64: rounding would turn axes of like spread about, otherwise on each machine.
        flat = torch.atanh(0.98 * image.double().flatten(1))
        for row in range(len(self.mean)):
            last = row == len(self.mean) - 1
            here = torch.ones_like(known) if last else known & (label == row)
            if int(here.sum()) < 2:
                here = torch.ones_like(known)
            part = flat[here]
            mean = part.mean(0)
            count = min(NOISE, *part.shape)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _, spread, axes = torch.svd_lowrank(part - mean, q=count, niter=4)
            self.mean[row] = mean / self.UNIT
            self.axes[row] = 0
            self.axes[row, :count] = spread[:, None] * axes.T / (len(part) - 1) ** 0.5 / self.UNIT


class Generator(nn.Module):
    """(noise (B, 64), label) -> image (B, C, S, S): residual stages from 4..7 pixels up, beside
    principal components."""

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        *,
        width: float,
        bf16: bool = False,
        several: bool = False,
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        self.components = Components(channels, size, 0 if several else classes)
        widths = _widths(size, width)
        self.embed = Embedding(classes, NOISE)
        self.gain = nn.Linear(2 * NOISE, widths[0])
        self.basis = nn.Parameter(torch.randn(base_of(size), base_of(size), widths[0]))
        self.widen = nn.ModuleList(
            convolution(a, b, (1, 1)) if a != b else nn.Identity() for a, b in pairwise(widths)
        )
        self.stages = nn.ModuleList(Residual(w, len(widths)) for w in widths)
        self.sees = nn.ModuleList(nn.Linear(channels, w, bias=False) for w in widths)
        self.image = nn.Conv2d(widths[-1], channels, 1, bias=False)
        nn.init.zeros_(self.image.weight)

    def forward(self, noise: Tensor, label: Tensor, known: Tensor) -> Tensor:
        gain = self.gain(torch.cat([noise, self.embed(label, known)], 1))
        x = self.basis * gain[:, None, None, :] / math.sqrt(2)
        x = x.permute(0, 3, 1, 2)
        first = self.components(noise, label, known)
        x = self.stages[0](x + _seen(self.sees[0], first, x.shape[-1]))
        for widen, stage, sees in zip(self.widen, self.stages[1:], self.sees[1:], strict=True):
            with low_precision(self.bf16, x.device):
                x = smooth_up(widen(x))
                x = stage(x + _seen(sees, first, x.shape[-1]))
        return torch.tanh(first + self.image(x.float()))


def _seen(layer: nn.Module, image: Tensor, side: int) -> Tensor:
    """A product over the channels of the image at this size, which keeps them last."""
    small = F.interpolate(image, side, mode="area").permute(0, 2, 3, 1)
    return layer(small).permute(0, 3, 1, 2)


class Critic(nn.Module):
    """(image, label) -> how real the pair looks (B,), and what class the image shows (B, K).

    No layer lets one row see another, so one gradient serves the penalties of all rows. The last
    product has no bias: its true gradient under a relativistic loss is zero, and the optimiser
    would amplify the rounding error in it until workers drift apart.
    """

    def __init__(
        self, channels: int, size: int, classes: int, *, width: float, bf16: bool = False
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        widths = _widths(size, width)[::-1]
        self.image = nn.Linear(channels, widths[0], bias=False)
        self.stages = nn.ModuleList(Residual(w, len(widths)) for w in widths)
        self.narrow = nn.ModuleList(
            convolution(a, b, (1, 1)) if a != b else nn.Identity() for a, b in pairwise(widths)
        )
        base = base_of(size)
        self.gather = nn.Parameter(torch.randn(base, base, widths[-1]) / base)
        self.features = nn.Linear(widths[-1], widths[-1], bias=False)
        self.embed = Embedding(classes, widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor, label: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        with low_precision(self.bf16, image.device):
            # A product over the last dimension: it keeps the channels last through every
            # derivative, where a convolution of one channel would turn the layout round.
            x = self.image(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for stage, narrow in zip(self.stages[:-1], self.narrow, strict=True):
                x = narrow(smooth_down(stage(x)))
        x = self.stages[-1](x.float())
        # A depth-wise convolution of full size.
        x = self.features((x.permute(0, 2, 3, 1) * self.gather).sum((1, 2)))
        logits = (x * self.embed(label, known)).sum(1) / math.sqrt(x.shape[1])
        return logits, self.head(x)


def _widths(size: int, width: float) -> list[int]:
    count = int(math.log2(size // base_of(size))) + 1
    return [max(16, 16 * round(w * width / 16)) for w in _WIDTHS[:count]]


# --- the founding text's network --------------------------------------------------------------

_CLASSIC = (64, 128, 256, 512, 1024)
_DENSE = (4096, 1024)


class ClassicCritic(nn.Module):
    """Convolutions of 64 to 1024 channels, each with batch normalisation, LeakyReLU 0.2 and
    dropout 0.3, then dense layers of 4096 and 1024, as the founding text has it.

    `stride=2` makes it buildable; with the text's stride of 1 the first dense layer alone holds
    2.75e11 weights at 256 x 256. Batch normalisation couples the rows, so no gradient penalty.
    """

    def __init__(self, channels: int, size: int, classes: int, *, stride: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *_CLASSIC[:-1]), _CLASSIC, strict=True):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
                nn.Dropout(0.3),
            ]
            size = (size + stride - 1) // stride
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(_CLASSIC[-1] * size * size, _DENSE[0]),
            nn.LeakyReLU(0.2),
            nn.Linear(_DENSE[0], _DENSE[1]),
            nn.LeakyReLU(0.2),
        )
        self.embed = Embedding(classes, _DENSE[1])
        self.head = nn.Linear(_DENSE[1], classes)

    def forward(self, image: Tensor, label: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dense(self.convolutions(image))
        logits = (x * self.embed(label, known)).sum(1) / math.sqrt(x.shape[1])
        return logits, self.head(x)


class ClassicGenerator(nn.Module):
    """The classic critic's convolutions turned round (the founding text names no generator)."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.size = size
        self.side = math.ceil(size / 2 ** (len(_CLASSIC) - 1))
        self.embed = Embedding(classes, NOISE)
        self.start = nn.Linear(2 * NOISE, _CLASSIC[-1] * self.side**2)
        layers: list[nn.Module] = []
        widths = _CLASSIC[::-1]
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.image = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, noise: Tensor, label: Tensor, known: Tensor) -> Tensor:
        x = self.start(torch.cat([noise, self.embed(label, known)], 1))
        x = self.convolutions(x.view(len(x), _CLASSIC[-1], self.side, self.side))
        return torch.tanh(self.image(x)[:, :, : self.size, : self.size])
