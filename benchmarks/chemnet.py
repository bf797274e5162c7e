"""ChemNet's view of molecules, for the Fréchet ChemNet distance (Preuer et al. 2018, J Chem Inf
Model 58:1736).

The weights are those of the package fcd_torch 1.0.7 (MIT), of which nothing else is used:

    pip download --no-deps fcd_torch==1.0.7 && unzip fcd_torch-*.whl ChemNet… -d FOLDER
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "ChemNet_v0.13_pretrained.pt"
_SYMBOLS = "C N O H F Cl P B Br S I Si # ( ) + - 1 2 3 4 5 6 7 8 = [ ] @ c n o s X ."
SYMBOLS = tuple(_SYMBOLS.split())
LENGTH = 350  # symbols of a SMILES and its end
ROWS = 512
_SYMBOL = re.compile(r".[ril]|.")


class ChemNet(nn.Module):
    """Two convolutions and two recurrent layers, each of which reads from the other end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        layers = torch.load(path, weights_only=True)
        weights = [state for _, (state, _, _) in layers]
        self.first, self.second = (weights[n]["weight"] for n in (0, 1))
        self.back = nn.LSTM(32, 128, batch_first=True)
        self.forth = nn.LSTM(128, 512, batch_first=True)
        self.back.load_state_dict(weights[2])
        self.forth.load_state_dict(weights[3])

    def forward(self, rows: Tensor) -> Tensor:
        """(B, 512) of one-hot symbols (B, SYMBOLS, LENGTH), each divided by their number."""
        hidden = F.selu(F.conv1d(F.pad(rows, (1, 1)), self.first, stride=2))
        hidden = F.selu(F.conv1d(F.pad(hidden, (1, 2)), self.second, stride=2))
        hidden, _ = self.back(hidden.transpose(1, 2).flip(1))
        hidden, _ = self.forth(hidden.flip(1))
        return hidden[:, -1]


def rows(smiles: Sequence[str]) -> Tensor:
    """(B, SYMBOLS, LENGTH) of canonical SMILES."""
    place = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    found = torch.zeros(len(smiles), len(SYMBOLS), LENGTH)
    for row, text in zip(found, smiles, strict=True):
        symbols = [*_SYMBOL.findall(text)[: LENGTH - 1], "."]
        codes = [place.get(symbol, place["X"]) for symbol in symbols]
        row[codes, range(len(codes))] = 1 / len(SYMBOLS)
    return found


@torch.inference_mode()
def statistics(network: ChemNet, smiles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (512,) and covariance (512, 512) of what it makes of canonical SMILES."""
    seen = [
        network(rows(smiles[start : start + ROWS])).double().numpy()
        for start in range(0, len(smiles), ROWS)
    ]
    every = np.concatenate(seen)
    return every.mean(0), np.cov(every.T)
