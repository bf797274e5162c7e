"""The adversarial losses and the gradient penalty, for any shape of data."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Mean = Callable[[Tensor, Tensor], Tensor]  # value, weight -> mean over the rows of ALL workers


def relativistic(winner: Tensor, loser: Tensor, weight: Tensor, mean: Mean) -> Tensor:
    """How far the winner's logits are from beating the loser's, pair by pair.

    The critic calls it with (real, fake), the generator with the two exchanged (Jolicoeur-Martineau
    2018; paired as in Huang et al. 2024, "The GAN is dead; long live the GAN!").
    """
    return mean(F.softplus(loser - winner), weight)


def classic_critic(real: Tensor, fake: Tensor, weight: Tensor, mean: Mean) -> Tensor:
    """−(E[log D(x)] + E[log(1 − D(G(z)))]) with D = sigmoid(logits) (Goodfellow et al. 2014)."""
    return mean(F.softplus(-real), weight) + mean(F.softplus(fake), weight)


def classic_generator(fake: Tensor, weight: Tensor, mean: Mean) -> Tensor:
    """−E[log D(G(z))], the non-saturating form (Goodfellow et al. 2014)."""
    return mean(F.softplus(-fake), weight)


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """(B,) squared norm of each row's gradient: R1 on real rows, R2 on fake (Mescheder 2018).

    Right only where rows do not touch each other in the critic: no batch normalisation, no
    statistic over the batch.
    """
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return slope.float().reshape(len(slope), -1).square().sum(1)


def recognition(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,) cross-entropy: of one class (target (B,)), or the mean over several yes-or-no labels."""
    if target.dtype == torch.int64:
        return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return loss.mean(1)
