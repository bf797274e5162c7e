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


def critic(
    judge: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    real: Tensor,
    fake: Tensor,
    weight: Tensor,
    mean: Mean,
    *,
    loss: str,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """The critic's loss with the gradient penalties of both sides, and what it tells of real rows.

    Args:
        judge: of inputs (B, …) and their side, 0 for real and 1 for generated: logits of being
            real (B,) and of classes (B, K). The sides are seen apart: two forwards cost no more
            than one over both, and batch statistics are not mixed.
        loss: "relativistic" or "classic".
        gamma: weight of R1 and R2, half of which is added; 0 leaves them out.
    """
    told, penalties = [], []
    for side, inputs in enumerate((real, fake)):
        inputs = inputs.detach().requires_grad_(gamma > 0)
        told.append(judge(inputs, side))
        if gamma > 0:
            penalties.append(gradient_penalty(told[-1][0], inputs))
    (logits, classes), (fake_logits, _) = told
    compared = relativistic if loss == "relativistic" else classic_critic
    found = compared(logits, fake_logits, weight, mean)
    if gamma > 0:
        found = found + 0.5 * gamma * mean(penalties[0] + penalties[1], weight)
    return found, classes


def recognition(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,) cross-entropy: of one class (target (B,)), or the mean over several yes-or-no labels."""
    if target.dtype == torch.int64:
        return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return loss.mean(1)
