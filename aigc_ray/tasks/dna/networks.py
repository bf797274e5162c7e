"""The networks of DNA: images of one row, a channel a letter, hard ones and zeros."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray.blocks import Embedding, Residual, low_precision
from aigc_ray.tasks.dna.chains import flipped

NOISE = 64  # numbers that a sequence is edited by
KERNEL = (1, 5)
KEPT = 3.0  # by how much an edit must be the better letter
BLOCKS = 3  # residual stages of generator and critic
UNIT = 0.2  # of the edits: one step of the optimiser moves them by so much less
TEMPERATURE = 0.75  # of the softmax that carries the gradient past the choice of a letter


def image(codes: Tensor) -> Tensor:
    """(B, 4, 1, L) of codes (B, L): channels A, C, G and T; an unknown letter is a quarter each."""
    hot = F.one_hot(codes, 5)[..., 1:].float()
    hot = torch.where(codes[..., None] > 0, hot, 0.25)
    return hot.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)


def codes_of(image: Tensor) -> Tensor:
    """(B, L) of hard images (B, 4, 1, L)."""
    return image[:, :, 0].argmax(1) + 1


def stride_of(length: int) -> int:
    """Letters that generator and critic read as one place; more of them cost less."""
    return 2 if length <= 128 else 4


class _Reader(nn.Module):
    """Image (B, 4, 1, L) -> (B, width, 1, L / stride): each place sees three times its letters."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.stride = stride_of(length)
        self.places = math.ceil(length / self.stride)
        self.missing = self.places * self.stride - length
        self.words = nn.Conv2d(4, width, (1, 3 * self.stride), (1, self.stride), (0, self.stride))
        self.place = nn.Parameter(torch.randn(width, 1, self.places) * 0.1)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.words(F.pad(image, (0, self.missing))) + self.place
        return found


class Generator(nn.Module):
    """(codes (B, L), noise (B, 64), class (B,)) -> hard image (B, 4, 1, L): an editor.

    It begins with a draw of the class's chains and changes letters where that wins more than it
    costs, so it starts as they are; what chains cannot know, such as which motifs stand together
    and how far apart, is left to it. Letters are chosen for good and the gradient passes by the
    softmax (Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons"):
    soft letters a critic would tell by their softness alone.
    """

    def __init__(self, length: int, classes: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16, self.length = bf16, length
        self.embed = Embedding(classes, NOISE)
        self.read = _Reader(length, width)
        stride = self.read.stride
        self.tell = nn.ModuleList(nn.Linear(2 * NOISE, width) for _ in range(BLOCKS))
        self.stages = nn.ModuleList(Residual(width, BLOCKS, kernel=KERNEL) for _ in range(BLOCKS))
        self.edit = nn.ConvTranspose2d(width, 4, (1, 3 * stride), (1, stride), (0, stride))
        nn.init.zeros_(self.edit.weight)
        nn.init.zeros_(self.edit.bias)  # type: ignore[arg-type]

    def forward(
        self, codes: Tensor, noise: Tensor, label: Tensor, fixed: Tensor | None = None
    ) -> Tensor:
        start = image(codes)
        known = torch.ones_like(label, dtype=torch.bool)
        wish = torch.cat([noise, self.embed(label, known)], 1)
        with low_precision(self.bf16, codes.device):
            x = self.read(start)
            for tell, stage in zip(self.tell, self.stages, strict=True):
                x = stage(x + tell(wish)[:, :, None, None])
        logits = KEPT * start + UNIT * self.edit(x.float())[..., : self.length]
        if fixed is not None:
            logits = torch.where(fixed[:, None, None] > 0, 1e4 * image(fixed), logits)
        soft = (logits / TEMPERATURE).softmax(1)
        hard = F.one_hot(logits.argmax(1), 4).permute(0, 3, 1, 2).to(soft.dtype)
        return hard + soft - soft.detach()


class Critic(nn.Module):
    """(image, class) -> how real the pair looks (B,), and which class it shows (B, K).

    It sees one strand; whoever asks shows it either, or both. No layer lets one row see another, so
    one gradient serves the penalties of all rows; the last product has no bias, since its true
    gradient under a relativistic loss is zero.
    """

    def __init__(self, length: int, classes: int, width: int, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.read = _Reader(length, width)
        self.stages = nn.ModuleList(Residual(width, BLOCKS, kernel=KERNEL) for _ in range(BLOCKS))
        self.gather = nn.Parameter(torch.randn(width, 1, self.read.places) / self.read.places)
        self.features = nn.Linear(2 * width, 2 * width, bias=False)
        self.embed = Embedding(classes, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with low_precision(self.bf16, image.device):
            x = self.read(image)
            for stage in self.stages:
                x = stage(x)
        x = x.float()
        x = torch.cat([(x * self.gather).sum((2, 3)), F.leaky_relu(x, 0.2).mean((2, 3))], 1)
        x = self.features(x)
        known = torch.ones_like(label, dtype=torch.bool)
        logits = (x * self.embed(label, known)).sum(1) / math.sqrt(x.shape[1])
        return logits, self.head(F.leaky_relu(x, 0.2))


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
