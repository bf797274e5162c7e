"""Rows unlike any that a model has seen, told by where their features lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SPACES = ("features", "look")  # parts of a prediction in which rows are compared
BANK = 2000  # training rows that are kept
NEIGHBOURS = 10
SHRINK = 0.1  # how far the covariance is drawn towards its mean variance; rows are few


class Outliers:
    """How unlike the training rows a row is: its highest rank among held-back rows, 0 to 1.

    Rows are compared in one or more spaces: what a recogniser makes of them, and what they plainly
    are. A recogniser that was never shown an X-ray film turned negative need not see that it is
    one; by its coarse brightness it is as strange as can be.
    """

    def __init__(self, spaces: Sequence[Space]) -> None:
        self.spaces = list(spaces)

    @classmethod
    def fit(
        cls, train: Sequence[Tensor], label: Tensor | None, held_back: Sequence[Tensor]
    ) -> Outliers:
        """From training rows (N, D) and held-back rows (M, D) in each space.

        Args:
            label: (N,) classes of the training rows; None where they have none.
        """
        pairs = zip(train, held_back, strict=True)
        return cls([Space.fit(known, label, unseen) for known, unseen in pairs])

    def again(self, held_back: Sequence[Tensor]) -> Outliers:
        """The same training rows, ranked among other held-back rows (M, D)."""
        pairs = zip(self.spaces, held_back, strict=True)
        return Outliers([space.again(rows) for space, rows in pairs])

    def score(self, rows: Sequence[Tensor]) -> Tensor:
        """(B,) from 0, as usual as any held-back row, to 1, stranger than all of them."""
        pairs = zip(self.spaces, rows, strict=True)
        return torch.stack([space.score(one) for space, one in pairs]).amax(0)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": getattr(space, name).contiguous()
            for number, space in enumerate(self.spaces)
            for name in NAMES
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Outliers:
        count = len(tensors) // len(NAMES)
        return cls([Space(*(tensors[f"{n}.{name}"] for name in NAMES)) for n in range(count)])


class Space:
    """One space of features, and where training and held-back rows lie in it.

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
    def fit(cls, train: Tensor, label: Tensor | None, held_back: Tensor, seed: int = 0) -> Space:
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

    def again(self, held_back: Tensor) -> Space:
        far, apart = self.distances(held_back)
        return Space(self.centres, self.whiten, self.bank, far.sort().values, apart.sort().values)

    def distances(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) each: from the nearest class mean, and from the training rows nearby."""
        white = (features.float()[:, None] - self.centres) @ self.whiten.T  # (B, K, D)
        likeness = _unit(features.float()) @ self.bank.T
        nearest = likeness.topk(min(NEIGHBOURS, len(self.bank)), dim=1).values[:, -1]
        return white.square().sum(2).min(1).values.sqrt(), 1 - nearest

    def score(self, features: Tensor) -> Tensor:
        far, apart = self.distances(features)
        ranks = [
            torch.searchsorted(known, value) / len(known)
            for known, value in ((self.far, far), (self.apart, apart))
        ]
        return torch.maximum(*ranks)


NAMES = ("centres", "whiten", "bank", "far", "apart")


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
