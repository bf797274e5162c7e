"""Rows unlike any that a model has seen, told by where their features lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

BANK = 2000  # training rows that are kept
NEIGHBOURS = 10
SHRINK = 0.1  # how far the covariance is drawn towards its mean variance; rows are few


class Outliers:
    """How unlike the training rows a row is: its higher rank among held-back rows, 0 to 1.

    Two distances are ranked: Mahalanobis's from the nearest class mean (Lee et al. 2018), and the
    cosine distance from the tenth nearest of the training rows (Sun et al. 2022). The one knows
    the shape of the whole, the other that of the parts, and a row may be strange to one of them
    alone: by the mean rank noise was no stranger than a chest film, by the higher all of it is.

    Args:
        centres: (K, D) means of the classes.
        whiten: (D, D), after which the distance from a centre is Euclidean.
        bank: (M, D) training rows of length one.
        far: (N,) Mahalanobis distances of held-back rows, ascending.
        apart: (N,) their distances from the bank, ascending.
    """

    def __init__(
        self, centres: Tensor, whiten: Tensor, bank: Tensor, far: Tensor, apart: Tensor
    ) -> None:
        self.centres, self.whiten, self.bank = centres, whiten, bank
        self.far, self.apart = far, apart

    @classmethod
    def fit(cls, train: Tensor, label: Tensor | None, held_back: Tensor, seed: int = 0) -> Outliers:
        """From features (N, D) of training rows and (M, D) of held-back rows.

        Args:
            label: (N,) classes of the training rows; None where they have none.
        """
        train, held_back = train.double(), held_back.double()
        groups = [train] if label is None else [train[label == k] for k in torch.unique(label)]
        centres = torch.stack([group.mean(0) for group in groups])
        spread = torch.cat([group - group.mean(0) for group in groups])
        covariance = spread.T @ spread / len(spread)
        size = len(covariance)
        even = torch.eye(size, dtype=torch.float64) * covariance.diagonal().mean().clamp(min=1e-12)
        covariance = (1 - SHRINK) * covariance + SHRINK * even
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
        order = np.random.default_rng(seed).permutation(len(train))[:BANK]
        bank = _unit(train[torch.from_numpy(order)])
        empty = torch.zeros(0)
        plain = cls(centres.float(), whiten.float(), bank.float(), empty, empty)
        far, apart = plain.distances(held_back.float())
        plain.far, plain.apart = far.sort().values, apart.sort().values
        return plain

    def again(self, held_back: Tensor) -> Outliers:
        """The same training rows, ranked among other held-back rows (M, D)."""
        far, apart = self.distances(held_back)
        return Outliers(
            self.centres, self.whiten, self.bank, far.sort().values, apart.sort().values
        )

    def distances(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) each: from the nearest class mean, and from the training rows nearby."""
        white = (features.float()[:, None] - self.centres) @ self.whiten.T  # (B, K, D)
        likeness = _unit(features.float()) @ self.bank.T
        nearest = likeness.topk(min(NEIGHBOURS, len(self.bank)), dim=1).values[:, -1]
        return white.square().sum(2).min(1).values.sqrt(), 1 - nearest

    def score(self, features: Tensor) -> Tensor:
        """(B,) from 0, as usual as any held-back row, to 1, stranger than all of them."""
        far, apart = self.distances(features)
        ranks = [
            torch.searchsorted(known, value) / len(known)
            for known, value in ((self.far, far), (self.apart, apart))
        ]
        return torch.maximum(*ranks)

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).contiguous() for name in NAMES}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Outliers:
        return cls(*(tensors[name] for name in NAMES))


NAMES = ("centres", "whiten", "bank", "far", "apart")


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
