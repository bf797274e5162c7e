"""The networks of DNA: images of one row, a channel a letter, hard ones and zeros."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import noise
from aigc_ray.blocks import Embedding, Residual, low_precision
from aigc_ray.tasks.dna.chains import flipped

KERNEL = (1, 5)
BLOCKS = 3  # residual stages of the critic


def image(codes: Tensor) -> Tensor:
    """(B, 4, 1, L) of codes (B, L): channels A, C, G and T; an unknown letter is a quarter each."""
    hot = F.one_hot(codes, 5)[..., 1:].float()
    hot = torch.where(codes[..., None] > 0, hot, 0.25)
    return hot.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)


class Chosen(nn.Module):
    """(the critic's logits (B, C), random numbers (B, C) from 0 to 1) -> which of C candidates each
    row lets pass (B,): each with the odds that the critic gives it of being real.

    So the generator is what plain statistics say, as far as a critic takes it for real (sampling
    importance resampling, Rubin 1988; by a discriminator's odds, Azadi et al. 2019, "Discriminator
    rejection sampling"). A network that edited their letters by the critic's gradient, as the
    generator of an image would, was tried first: it learned to leave them alone, or was told from
    real sequences more easily than they are.
    """

    def forward(self, logits: Tensor, random: Tensor) -> Tensor:
        return noise.pick(logits, random)


class Critic(nn.Module):
    """(image, class) -> how real the pair looks (B,), and which class it shows (B, K).

    It learns from either strand and is asked of both. The last product has no bias, since its true
    gradient under a relativistic loss is zero.
    """

    def __init__(self, length: int, classes: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        stride = 2 if length <= 128 else 4  # letters that are read as one place, to save time
        places = math.ceil(length / stride)
        self.missing = places * stride - length
        # Each place sees three times its letters.
        self.read = nn.Conv2d(4, width, (1, 3 * stride), (1, stride), (0, stride))
        self.place = nn.Parameter(torch.randn(width, 1, places) * 0.1)
        self.stages = nn.ModuleList(Residual(width, BLOCKS, kernel=KERNEL) for _ in range(BLOCKS))
        self.gather = nn.Parameter(torch.randn(width, 1, places) / places)
        self.features = nn.Linear(2 * width, 2 * width, bias=False)
        self.embed = Embedding(classes, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with low_precision(self.bf16, image.device):
            x = self.read(F.pad(image, (0, self.missing))) + self.place
            for stage in self.stages:
                x = stage(x)
        x = x.float()
        x = torch.cat([(x * self.gather).sum((2, 3)), F.leaky_relu(x, 0.2).mean((2, 3))], 1)
        x = self.features(x)
        known = torch.ones_like(label, dtype=torch.bool)
        logits = (x * self.embed(label, known)).sum(1) / math.sqrt(x.shape[1])
        return logits, self.head(F.leaky_relu(x, 0.2))

    def both(self, codes: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Of sequences (B, L), the means over both strands."""
        one, other = (self(image(strand), label) for strand in (codes, flipped(codes)))
        return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


class Recogniser(nn.Module):
    """Dilated convolutions over both strands, beside the odds that the chains give the classes."""

    def __init__(self, length: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        left = math.ceil(length / 2)
        self.read = nn.Conv2d(4, width, (1, 11), padding=(0, 5))
        self.place = nn.Parameter(torch.randn(width, 1, length) * 0.1)
        self.blocks = nn.ModuleList(_Dilated(width, 2**level) for level in range(4))
        self.norm = nn.BatchNorm2d(width)
        self.gather = nn.Parameter(torch.randn(width, 1, left) / left)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(3 * width, width)
        self.head = nn.Linear(width, classes)
        self.trust = nn.Parameter(torch.tensor(0.4))  # in the chains' odds

    def features(self, image: Tensor) -> Tensor:
        """(B, width) of one strand."""
        x = F.max_pool2d(self.read(image) + self.place, (1, 2), ceil_mode=True)
        for block in self.blocks:
            x = block(x)
        x = F.gelu(self.norm(x)).float()
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3)), (x * self.gather).sum((2, 3))], 1)
        return F.gelu(self.hidden(self.dropout(x)))

    def seen(self, features: Tensor) -> Tensor:
        """(B, K) logits of what the convolutions see."""
        found: Tensor = self.head(self.dropout(features))
        return found

    def trusted(self, odds: Tensor) -> Tensor:
        """(B, K) logits of what the chains say; odds (B, K) are log-likelihoods under them."""
        return self.trust * (odds - odds.mean(1, keepdim=True))

    def logits(self, features: Tensor, odds: Tensor) -> Tensor:
        """(B, K) of both, each of which learned alone: together, they would count twice in training
        what they both see there, and the convolutions would learn what chains miss by chance."""
        return self.seen(features) + self.trusted(odds)

    def both(self, codes: Tensor) -> Tensor:
        """(B, width) means of both strands' features."""
        seen = self.features(image(torch.cat([codes, flipped(codes)])))
        return (seen[: len(codes)] + seen[len(codes) :]) / 2


class _Dilated(nn.Module):
    """x + W2(act(W1(act(norm(x))))), a 1x5 convolution with gaps between its taps, and a 1x1."""

    def __init__(self, width: int, gap: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, KERNEL, padding=(0, 2 * gap), dilation=(1, gap))
        self.reduce = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(F.gelu(self.mix(F.gelu(self.norm(x)))))
